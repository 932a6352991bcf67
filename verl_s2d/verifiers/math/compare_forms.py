"""Compare two answers in normal form, as far as text and numbers decide."""

from __future__ import annotations

import re

from verl_s2d.verifiers.math import numerals
from verl_s2d.verifiers.math.normal_form import Answer

MAX_LETTERS = 3
"""Most letters that may be a product without a sign, in any order: more of them are a word."""

_CLOCK = re.compile(r"0?(\d{1,2})(?::(\d\d))?")


def same_form(truth: Answer, answer: Answer) -> tuple[bool, str] | None:
    """Decide by text or by value: (equal, `text` or `number`); None if it takes algebra."""
    if truth.unit and answer.unit and truth.unit != answer.unit:
        return False, "text"
    times = [_CLOCK.fullmatch(side.tight) for side in (truth, answer)]
    if {truth.unit, answer.unit} & {"am", "pm"} or all(time and time.group(2) for time in times):
        return all(times) and len({(time.group(1), time.group(2) or "00") for time in times if time}) == 1, "text"
    if truth.base or answer.base:
        return _same_base(truth, answer), "text"
    for choice, other in ((truth.choice, answer), (answer.choice, truth)):
        if choice and other.choice != choice and (other.choice or other.words == choice.lower()):
            return not other.choice, "text"
    if truth.percent == answer.percent and truth.tight == answer.tight and truth.tight:
        return True, "text"
    words = truth.words, answer.words
    if truth.is_text or answer.is_text or (truth.text.isalpha() and answer.text.isalpha()):
        same = words[0] == words[1] and bool(words[0])
        # Letters without \text may also be a product, in any order.
        if same or truth.is_text or answer.is_text or max(map(len, (truth.text, answer.text))) > MAX_LETTERS:
            return same, "text"
    if truth.value is not None and answer.value is not None:
        return _same_number(truth, answer), "number"
    return None


def _same_base(truth: Answer, answer: Answer) -> bool:
    """Compare digits; the truth's base may be left out, and a base that the truth does not have must be ten."""
    if answer.base and answer.base != (truth.base or "10"):
        return False
    return truth.tight.upper() == answer.tight.upper()


def _same_number(truth: Answer, answer: Answer) -> bool:
    first, second = truth.value, answer.value
    if truth.percent != answer.percent:
        # 50% may be written as 50 or as 0.5; 0.5% only as 0.005.
        plain, per_hundred = (second, first) if truth.percent else (first, second)
        return plain == per_hundred / 100 or (plain == per_hundred and abs(plain) > 1)
    if truth.decimal == answer.decimal:
        return first == second
    written, exact = (truth, second) if truth.decimal else (answer, first)
    return numerals.stands_for(written.text, exact)
