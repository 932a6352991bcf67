"""Extract a short answer from a response: an <answer> tag, the last number, or the last line; and compare two of them.

Only text after the model's thinking counts, and an answer that names several candidates is none.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

MAX_CHARACTERS = 8192
"""Characters read from the end of a response, where answers are."""

_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_SENTENCE_END = re.compile(r"[.!?](?:\s+|$)|\n+")
_HEDGE = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|alternatively)\b", re.IGNORECASE)
_LISTED = re.compile(r"[-+]?\d[\d.]*\s*(?:[,;&/|]|\band\b|\bto\b|[-~–]{1,2}|\.{2,})\s*$", re.IGNORECASE)
"""A number before the last one, in the same list or range."""
_DENIED = re.compile(r"(?:\bnot|n't)\s*$", re.IGNORECASE)
_TOKEN = re.compile(rf"{_NUMBER.pattern}|[^\W\d_]+")
_FRACTION = re.compile(r"\\d?frac(?![A-Za-z])")
_SIGNIFICANT = 3
"""Digits that a rounded answer needs."""


def final_text(response: str, *, number: bool) -> str | None:
    """Extract the answer: the last <answer> tag's content, else the last number or line; None if there is none.

    Args:
        number: a number is expected. Without a tag, one of several numbers that are joined by "or", a comma and the
            like is no answer.
    """
    text = _after_thinking(response)[-MAX_CHARACTERS:].replace("\N{MINUS SIGN}", "-")
    closing = text.rfind("</answer>")
    opening = text.rfind("<answer>", 0, closing) if closing >= 0 else -1
    if opening >= 0:
        return text[opening + len("<answer>") : closing].strip() or None
    if number:
        return _last_number(text)
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def is_number(text: str) -> bool:
    """Tell whether a text is a finite number."""
    return _value(text.strip()) is not None


def same_tokens(answer: str, expected: str) -> bool:
    """Tell whether two texts have the same words and numbers, in any order and with any punctuation.

    Case does not count. A decimal may be rounded to three digits or more.
    """
    found, wanted = _tokens(answer), _tokens(expected)
    return len(found) == len(wanted) and all(map(_same_token, found, wanted))


def _after_thinking(response: str) -> str:
    closed = response.rfind("</think>")
    rest = response[closed + len("</think>") :] if closed >= 0 else response
    # Thinking that has not ended has no answer yet.
    return rest.partition("<think>")[0]


def _last_number(text: str) -> str | None:
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    end = _SENTENCE_END.search(text, last.end())
    begin = max((m.end() for m in _SENTENCE_END.finditer(text, 0, last.start())), default=0)
    before, after = text[begin : last.start()], text[last.end() : end.start() if end else len(text)]
    others = [number.group() for number in numbers[:-1] if number.start() >= begin]
    # "8 or 7" hedges; "one or two steps: 14 / 2 = 7" does not.
    result = before.rstrip().endswith("=")
    hedged = (
        bool(others)
        and not result
        and (_HEDGE.search(before + after) is not None or _LISTED.search(before) is not None)
    )
    return None if hedged or _DENIED.search(before) else last.group()


def _tokens(text: str) -> list[str]:
    tokens = _TOKEN.findall(_FRACTION.sub(" ", text.casefold()))
    # Numbers by value, so that 0.50 and 0.5 have the same place.
    return sorted(tokens, key=lambda token: (_value(token) is not None, _value(token) or 0, token))


def _same_token(answer: str, expected: str) -> bool:
    if answer == expected:
        return True
    found, wanted = _value(answer), _value(expected)
    if found is None or wanted is None:
        return False
    if found == wanted:
        return True
    digits = len(found.as_tuple().digits)
    whole = wanted == wanted.to_integral_value()
    if whole or digits < _SIGNIFICANT or not wanted:
        return False
    return found == Decimal(f"{wanted:.{digits - 1}e}")


def _value(text: str) -> Decimal | None:
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
