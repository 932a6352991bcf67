"""Score problems of the reasoning-gym library with their data set's own scorer.

The reasoning-gym entry {question, answer, metadata} is JSON text in extra_info.entry. The reward is sparse, as the
method assumes: 1.0 for a full score, else 0.0. Most scorers give partial scores to answers that merely contain the
right text ("17" for 7), which a policy would learn to exploit.

Responses are untrusted: only their last characters are read, nothing in them is evaluated, and an exception of a scorer
counts as a wrong answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from reasoning_gym.factory import DATASETS, get_score_answer_fn
from reasoning_gym.utils import extract_answer

from verl_s2d.errors import UserError

MAX_CHARACTERS = 8192
"""Characters read from the end of a response, where answers are."""

EVALUATING_SCORERS = frozenset(
    {
        *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
        *("countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication"),
        *("bitwise_arithmetic", "number_sorting"),
    }
)
"""Refused data sets, whose scorer evaluates the response or the entry as Python, by eval or sympy's parse_expr."""

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    """Score a response: 1.0 if its answer gets the scorer's full score, else 0.0.

    Raises:
        UserError: the problem has no entry, or its data set no safe scorer.
    """
    entry = _entry(extra_info or {})
    score_answer = _scorer(entry["metadata"]["source_dataset"])
    try:
        return float(score_answer(answer_of(solution_str, entry["answer"]), entry) >= 1.0)
    except Exception:
        return 0.0


def check_answer(ground_truth: Any, extra_info: Mapping[str, Any], **_: Any) -> None:
    """Raise UserError for a problem without its entry, or of a data set without a safe scorer."""
    _scorer(_entry(extra_info)["metadata"]["source_dataset"])


def answer_of(response: str, expected: str) -> str | None:
    """Extract the answer: the last <answer> tag's content, else the last number, or line if `expected` is no number.

    Returns None if there is none.
    """
    response = response[-MAX_CHARACTERS:]
    tagged = extract_answer(response)
    if tagged is not None:
        return tagged
    if _is_number(expected):
        numbers = _NUMBER.findall(response)
        return numbers[-1] if numbers else None
    lines = response.strip().splitlines()
    return lines[-1].strip() if lines else None


def _is_number(text: str) -> bool:
    try:
        Decimal(text.replace(",", ""))
    except InvalidOperation:
        return False
    return True


def _entry(extra_info: Mapping[str, Any]) -> dict[str, Any]:
    try:
        entry = json.loads(extra_info["entry"])
        entry["metadata"]["source_dataset"], entry["answer"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "The problem does not carry its reasoning-gym entry.",
            key="extra_info.entry",
            value=extra_info.get("entry"),
            remedy="Store json.dumps(dataset[i]) in extra_info.entry.",
        ) from error
    return entry


@cache
def _scorer(dataset: str) -> Any:
    if dataset in EVALUATING_SCORERS:
        raise UserError(
            "The scorer of this data set evaluates the response or the problem as Python code.",
            key="source_dataset",
            value=dataset,
            remedy="Choose another data set, or write a verifier of your own (file.py:function).",
        )
    if dataset not in DATASETS:
        raise UserError(
            "The installed reasoning-gym has no such data set.",
            key="source_dataset",
            value=dataset,
            remedy="Check the entry's metadata, or upgrade reasoning-gym.",
        )
    return get_score_answer_fn(dataset)
