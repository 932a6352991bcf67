r"""Verify by a rubric: the share of the weights of criteria that a judge says the response meets.

    verifier:
      name: rubric
      judge: {url: "http://localhost:8000/v1", model: Qwen/Qwen3-8B}
      criteria:
        - {text: The final answer is that of the reference., weight: 3}
        - {text: Every step is explained., weight: 1}
        - {text: It claims something that is false., weight: -2}

    score = min(1, max(0, sum of the weights of met criteria / sum of the positive weights))

| option | default | meaning |
|---|---|---|
| judge | | url, model, key, seconds, max_tokens, constrained, options: judge.py |
| criteria | | the same for all problems |
| criteria_in | | or: the field of extra_info that has them, as a list or as JSON text |
| question_in | question | the field of extra_info that has the question; a problem without it is judged without |
| correct_from | 1.0 | score from which evaluation counts a response as correct |
| characters | 32768 | of a response that the judge is shown: its last ones |

An answer of the judge that cannot be read is asked for once more, then the response is unscored. Text after the last
</think> is judged alone; a response without any is 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import Field, FiniteFloat, model_validator

from verl_s2d.errors import Unscored, UserError
from verl_s2d.validation import Refused, Section, validated
from verl_s2d.verifiers.rubric.grading_prompt import grading_messages, read_verdicts, verdict_pattern
from verl_s2d.verifiers.rubric.judge import Judge, ask, request
from verl_s2d.verifiers.score import Score

AT_ONCE = 32
"""Responses that an evaluation has judged at the same time."""
_KEY = "verifier"


class Criterion(Section):
    """A property that a response may have, and its worth; a negative weight is a penalty."""

    text: str = Field(min_length=1)
    weight: FiniteFloat


class Rubric(Section):
    """Options of `verifier: {name: rubric, ...}`, described in this module's docstring."""

    judge: Judge
    criteria: list[Criterion] = Field(default_factory=list)
    criteria_in: str | None = None
    question_in: str = "question"
    correct_from: FiniteFloat = 1.0
    characters: int = Field(32_768, ge=1)

    @model_validator(mode="after")
    def _has_criteria(self) -> Rubric:
        if bool(self.criteria) == (self.criteria_in is not None):
            raise Refused(
                "A rubric needs criteria, from one place.",
                key="criteria",
                value=[criterion.text for criterion in self.criteria],
                remedy="Give criteria: [{text: ..., weight: 1}], or criteria_in: <field of extra_info>.",
            )
        _require_weights(self.criteria if self.criteria_in is None else None)
        return self


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Score a response by its rubric: a value from 0 to 1, with `acc` 1 from `correct_from` on.

    Raises:
        Unscored: the judge is not there, or its answer cannot be read.
        UserError: an option or the problem's rubric is unusable.
    """
    known = {name: value for name, value in options.items() if name in Rubric.model_fields}
    rubric = _rubric(json.dumps(known, sort_keys=True))
    info = extra_info or {}
    criteria = rubric.criteria or _own_criteria(info, rubric.criteria_in)
    response = solution_str.rpartition("</think>")[2].strip()[-rubric.characters :]
    if not response:
        return Score(0.0, {"acc": 0.0}).written()
    met = _judged(rubric, criteria, response, str(info.get(rubric.question_in) or ""), _reference(ground_truth))
    value = sum(criterion.weight for criterion, yes in zip(criteria, met, strict=True) if yes)
    value = min(1.0, max(0.0, value / sum(criterion.weight for criterion in criteria if criterion.weight > 0)))
    return Score(value, {"acc": float(value >= rubric.correct_from)}).written()


def check(**options: Any) -> None:
    """Ask the judge about a response of one word.

    Raises:
        UserError: an unusable option, a judge that is not there or serves another model, or one whose answer cannot be
            read.
    """
    rubric = validated(Rubric, options, key=_KEY)
    judge = rubric.judge
    try:
        served = request(judge, "/models")
        names = [str(model["id"]) for model in served["data"]]
    except (KeyError, TypeError):
        names = []
    except Unscored as error:
        remedy = "Start it, or correct the URL."
        raise UserError(f"No judge: {error}.", key=f"{_KEY}.judge.url", value=judge.url, remedy=remedy) from error
    if names and judge.model not in names:
        raise UserError(
            "The judge's endpoint serves no such model.",
            key=f"{_KEY}.judge.model",
            value=judge.model,
            remedy=f"It serves {', '.join(sorted(names)[:10])}.",
        )
    try:
        _judged(rubric, [Criterion(text="The response is a number.", weight=1)], "seven", "", "")
    except Unscored as error:
        raise UserError(
            f"The judge cannot judge: {error}.",
            key=f"{_KEY}.judge",
            value=judge.model,
            remedy="Choose a model that follows instructions, or raise max_tokens where it was cut off.",
        ) from error


def check_answer(ground_truth: Any, extra_info: Mapping[str, Any], **options: Any) -> None:
    """Raise UserError for a problem whose own rubric is absent or has no weights."""
    rubric = validated(Rubric, options, key=_KEY)
    if rubric.criteria_in is not None:
        _own_criteria(extra_info, rubric.criteria_in)


@cache
def _rubric(options: str) -> Rubric:
    return validated(Rubric, json.loads(options), key=_KEY)


def _judged(rubric: Rubric, criteria: Sequence[Criterion], response: str, question: str, reference: str) -> list[bool]:
    texts = [criterion.text for criterion in criteria]
    messages, nonce = grading_messages(texts, response, question=question, reference=reference)
    pattern = verdict_pattern(nonce, len(texts))
    return ask(rubric.judge, messages, pattern, lambda answer: read_verdicts(answer, nonce, len(texts)))


def _own_criteria(info: Mapping[str, Any], name: str | None) -> list[Criterion]:
    """Read a problem's own criteria from extra_info."""
    key, found = f"extra_info.{name}", info.get(str(name))
    try:
        found = json.loads(found) if isinstance(found, str) else found
    except ValueError as error:
        raise UserError(f"The rubric is not JSON: {error}", key=key, value=found, remedy=_REMEDY) from error
    if not isinstance(found, Sequence) or not found or not all(isinstance(one, Mapping) for one in found):
        raise UserError("The problem has no rubric.", key=key, value=found, remedy=_REMEDY)
    criteria = [validated(Criterion, dict(one), key=key) for one in found]
    try:
        _require_weights(criteria)
    except Refused as refused:
        raise refused.below(key) from None
    return criteria


_REMEDY = 'Give a list, or JSON text of one, of {"text": ..., "weight": ...}.'


def _require_weights(criteria: Sequence[Criterion] | None) -> None:
    if criteria is not None and not any(criterion.weight > 0 for criterion in criteria):
        raise Refused(
            "A rubric needs a positive weight: its score is the share of the positive weights.",
            key="criteria",
            value=[criterion.weight for criterion in criteria],
            remedy="Give the criteria that a good response meets weights above 0.",
        )


def _reference(ground_truth: Any) -> str:
    return "" if ground_truth is None else str(ground_truth)
