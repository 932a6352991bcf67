r"""Read ground truths as people have them: text, numbers of any type, solutions with a box or with `#### 72`."""

from __future__ import annotations

import decimal
import math
import numbers
import re
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.extraction import final_answer

MAX_PLACES = 400
"""Decimal places that a ground truth of type float is written with at most."""

_FLOAT_DIGITS = 15
"""Digits that every decimal keeps in a float: 0.1 + 0.2 is 0.3 again."""
_MISSING = frozenset(("nan", "null", "<na>", "n/a", "nat", "inf", "-inf"))
"""What pandas, JSON and spreadsheets print for a value that is not there."""
_DELIMITERS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"))
_NEXT_SENTENCE = re.compile(r"[a-z0-9$)}]{2}[.!?]\s+[A-Z]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SOLUTION_WORDS = 8
"""Words from which on text of several sentences is a solution, and no answer."""


def reference_answer(ground_truth: Any) -> str:
    """Read a problem's ground truth as the text to compare with.

    Raises:
        UserError: it is missing, or a solution whose final answer is not marked.
    """
    if isinstance(ground_truth, numbers.Real | decimal.Decimal) and not isinstance(ground_truth, bool):
        return _written(ground_truth)
    text = ground_truth.strip() if isinstance(ground_truth, str) else ""
    if not text or text.lower() in _MISSING:
        raise _refused(ground_truth, "has no ground truth", "Give it its final answer as text, or leave it out.")
    lines = [line for line in text.splitlines() if line.strip()]
    if r"\boxed" in text or r"\fbox" in text:
        answer = final_answer(text, "boxed")
    elif "####" in text:
        answer = text.rpartition("####")[2].strip()
    elif len(lines) > 1 and (marked := final_answer(text, "answer")):
        answer = marked
    else:
        answer = _bare(text)
        if (len(lines) > 1 and r"\begin" not in text and "\n" in answer) or _is_solution(answer):
            answer = None
    if not answer:
        raise _refused(
            text[:200],
            "has a solution as its ground truth, in which no final answer is marked",
            r"Give the final answer alone, or mark it in the solution: \boxed{72}, `#### 72` or `Answer: 72`.",
        )
    return answer


def _written(number: numbers.Real | decimal.Decimal) -> str:
    """Write a number without an exponent and without the noise of binary fractions."""
    if not math.isfinite(number):
        raise _refused(number, "has no ground truth, only a value that stands for a missing one", "Leave it out.")
    if isinstance(number, numbers.Integral):
        return str(int(number))
    # The text of a number of any precision, such as numpy's float32, is its shortest.
    text = str(number) if isinstance(number, decimal.Decimal) else f"{float(str(number)):.{_FLOAT_DIGITS}g}"
    exact = decimal.Decimal(text)
    text = f"{exact:f}" if -MAX_PLACES < exact.adjusted() < MAX_PLACES else text
    return text.rstrip("0").rstrip(".") if "." in text else text


def _bare(text: str) -> str:
    for opening, closing in _DELIMITERS:
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(text) - len(opening) - len(closing) and opening not in inner and inner[-1:] != "\\":
            return inner.strip()
    return text


def _is_solution(text: str) -> bool:
    return bool(_NEXT_SENTENCE.search(text)) and len(_WORD.findall(text)) >= _SOLUTION_WORDS


def _refused(value: Any, problem: str, remedy: str) -> UserError:
    return UserError(f"The problem {problem}.", key="reward_model.ground_truth", value=value, remedy=remedy)
