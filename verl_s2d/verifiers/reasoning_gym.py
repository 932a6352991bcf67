"""Score problems of the reasoning-gym library with their data set's own scorer.

The reasoning-gym entry {question, answer, metadata} is JSON text in extra_info.entry. The reward is sparse, as the
method assumes: 1.0 for a full score, else 0.0. Most scorers give partial scores to answers that merely contain the
right text ("17" for 7), which a policy would learn to exploit. Some give a full score to such answers. An answer must
therefore also have the expected words and numbers, or the form of a solution where a problem has several (SOLUTIONS).

Responses are untrusted: only their last characters are read, scorers that evaluate them run in the sandbox, and an
exception of a scorer counts as a wrong answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from reasoning_gym.factory import DATASETS, get_score_answer_fn

from verl_s2d.errors import UserError
from verl_s2d.sandbox.program import RunLimits
from verl_s2d.sandbox.sandbox import CallFailed, Sandbox
from verl_s2d.verifiers.final_text import final_text, is_number, same_tokens

EVALUATING_SCORERS = frozenset(
    {
        *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
        *("countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication"),
        *("bitwise_arithmetic", "number_sorting"),
    }
)
"""Data sets whose scorer evaluates the response or the entry, by eval or sympy's parse_expr: it runs in the sandbox."""

SOLUTIONS = {
    "jugs": r"\[.*\]",
    "knight_swap": r"\[.*\]|no",
    "palindrome_generation": r"[a-z]+",
    "quantum_lock": r"[A-C](\s*(→|->)\s*[A-C])*",
    "shortest_path": r"(up|down|left|right)(\s+(up|down|left|right))*|infeasible",
    "sokoban": r"[UDLR]+",
    "tower_of_hanoi": r"move disk \d+ from peg \d+ to peg \d+(\s+move disk \d+ from peg \d+ to peg \d+)*",
    "word_ladder": r"[A-Z]+(\s*,\s*[A-Z]+)+",
}
"""Data sets whose problems have several solutions -> the form of one, in any case. Their scorers check the rules."""

_TUPLES = {"arc_agi": ("output",), "rearc": ("output",)}
"""Data set -> metadata that its scorer compares as a tuple of tuples, which JSON makes a list of lists."""
_LIMITS = RunLimits(seconds=10.0, memory_mb=2048)
_NO_ANSWER = "I do not know"


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    """Score a response: 1.0 if its answer gets the scorer's full score, else 0.0.

    Raises:
        UserError: the problem has no entry, or its data set no safe scorer.
    """
    entry = _entry(extra_info or {})
    dataset, expected = entry["metadata"]["source_dataset"], entry["answer"]
    _require_known(dataset)
    answer = final_text(solution_str, number=is_number(expected))
    if answer is None:
        return 0.0
    if not expected.endswith(answer[-1]):
        answer = answer.rstrip(" .,;:!*`")
    # Scorers differ in the case that they take.
    answer = expected if answer.casefold() == expected.casefold() else answer
    if not _has_form(answer, expected, dataset):
        return 0.0
    if dataset in EVALUATING_SCORERS:
        try:
            return float(_boxes().call(_LIMITS, dataset=dataset, answer=answer, entry=entry) >= 1.0)
        except (CallFailed, TypeError):
            return 0.0
    try:
        return float(_scorer(dataset)(answer, entry) >= 1.0)
    except Exception:
        return 0.0


def check_answer(ground_truth: Any, extra_info: Mapping[str, Any], **_: Any) -> None:
    """Raise UserError for a problem without its entry, or whose own answer does not score 1.0, or no answer does."""
    entry = _entry(extra_info)
    dataset = entry["metadata"]["source_dataset"]
    _require_known(dataset)
    if dataset in EVALUATING_SCORERS:
        _boxes().check()
    for response, right in ((as_response(ground_truth, extra_info), 1.0), (_NO_ANSWER, 0.0)):
        score = compute_score("", response, ground_truth, dict(extra_info))
        if score != right:
            raise UserError(
                f"The scorer of this data set is unsound: the response {response[:80]!r} scores {score:g}.",
                key="source_dataset",
                value=dataset,
                remedy="Leave the problem out, or write a verifier of your own (file.py:function).",
            )


def as_response(ground_truth: Any, extra_info: Mapping[str, Any], **_: Any) -> str:
    """Write a problem's own answer as a response."""
    return f"<answer>{_entry(extra_info)['answer']}</answer>"


def _has_form(answer: str, expected: str, dataset: str) -> bool:
    """Tell whether an answer is one of the expected form, and not one among several or much more text."""
    if len(answer) > 4 * len(expected) + 64:
        return False
    if dataset in SOLUTIONS:
        return re.fullmatch(SOLUTIONS[dataset], answer, re.IGNORECASE | re.DOTALL) is not None
    return same_tokens(answer, expected)


def _entry(extra_info: Mapping[str, Any]) -> dict[str, Any]:
    try:
        entry = json.loads(extra_info["entry"])
        dataset = entry["metadata"]["source_dataset"]
        for name in _TUPLES.get(dataset, ()):
            entry["metadata"][name] = tuple(map(tuple, entry["metadata"][name]))
        answer = entry["answer"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "The problem does not carry its reasoning-gym entry.",
            key="extra_info.entry",
            value=extra_info.get("entry"),
            remedy="Store json.dumps(dataset[i]) in extra_info.entry.",
        ) from error
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(
            "The problem's entry has no answer, so that its scorer cannot be tested.",
            key="source_dataset",
            value=dataset,
            remedy="Choose another data set, or write a verifier of your own (file.py:function).",
        )
    return entry


def _require_known(dataset: str) -> None:
    if dataset not in DATASETS or dataset == "composite":
        raise UserError(
            "The installed reasoning-gym has no such data set.",
            key="source_dataset",
            value=dataset,
            remedy="Check the entry's metadata, or upgrade reasoning-gym.",
        )


@cache
def _scorer(dataset: str) -> Any:
    return get_score_answer_fn(dataset)


@cache
def _boxes() -> Sandbox:
    return Sandbox("verl_s2d.verifiers.gym_scorer:score_in_box")
