r"""Read numbers exactly: grouped digits, mixed and repeating ones, other bases; tell what rounds to what."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 400
"""Longest number that is read as a value."""
MIN_DIGITS = 6
"""Significant digits that a decimal needs to stand for a number that has no end: 0.333333 for 1/3, 3.14159 for pi."""

_GROUPED = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\{?(\d+)\}?")
_MIXED = re.compile(r"(?<![\d.^_}])(\d{1,12})\s+(\d{1,12})\s*/\s*(\d{1,12})(?!\d)")
_MIXED_TEX = re.compile(r"([-+]?)(\d{1,30})\s*\\frac\{(\d{1,30})\}\{(\d{1,30})\}")
_DECIMAL = re.compile(r"([-+]?)\s*(?:\d+\.?\d*|\.\d+)")
_RATIO = re.compile(r"([-+]?)\s*(?:\\frac\{\s*([-+]?\d+)\s*\}\{\s*([-+]?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_BASE = re.compile(
    r"\(?([0-9A-Za-z]{1,200}(?:\.[0-9A-Za-z]{1,200})?)\)?\s*_\{\s*\(?(?:\\text\{)?\s*(\w{1,8})\s*\}?\)?\s*\}"
)
_BASE_WORDS = {
    **{"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"},
    **{"ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"},
}


def plain_number(text: str) -> str:
    """Spell a number without grouping, mixed numbers as `2\\frac{1}{3}` and repeating decimals as fractions."""
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    return _MIXED.sub(r"\1\\frac{\2}{\3}", _REPEATING.sub(_repeating, text))


def in_base(text: str) -> tuple[str, str] | None:
    """Read a number in another base, such as 52_{8}: (its digits, the base in decimal); None for anything else."""
    match = _BASE.fullmatch(text.replace(r"\text{", "").replace("}_", "_") if r"}_" in text else text)
    if match is None:
        return None
    digits, base = match.group(1).upper(), _BASE_WORDS.get(match.group(2).lower(), match.group(2))
    valid = base.isdecimal() and 2 <= int(base) <= 36 and all(c == "." or int(c, 36) < int(base) for c in digits)
    return (digits, base) if valid else None


def value(text: str) -> tuple[Fraction | None, bool]:
    """Read an integer, a decimal or a ratio of integers: (exact value or None, it was written as a decimal)."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None, False
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(" ", "")), "." in text
    match = _MIXED_TEX.fullmatch(text) or _RATIO.fullmatch(text)
    if match is None:
        return None, False
    sign, *numbers = match.groups()
    *whole, top, bottom = (int(number) for number in numbers if number is not None)
    if bottom == 0:
        return None, False
    number = sum(whole) + Fraction(top, bottom)
    return (-number if sign == "-" else number), False


def stands_for(decimal: str, exact: Fraction) -> bool:
    """Tell whether a decimal is `exact`, or `exact` rounded or cut off to at least MIN_DIGITS significant digits.

    Integers are exact, on either side: neither 4.999999 nor 5.000000 stands for another number.

    Args:
        decimal: digits with a point, as written.
        exact: the number, or for an irrational one its digits far beyond those of `decimal`.
    """
    digits = decimal.replace(" ", "").lstrip("+")
    written = Fraction(digits)
    if written == exact or written.denominator == 1 or exact.denominator == 1:
        return written == exact
    places = len(digits.partition(".")[2])
    significant = len(digits.lstrip("-").replace(".", "").lstrip("0"))
    return (
        significant >= MIN_DIGITS
        and abs(written - exact) < Fraction(1, 10**places)
        and (abs(written) <= abs(exact) or 2 * abs(written - exact) <= Fraction(1, 10**places))
    )


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = (match.group(i) for i in (1, 2, 3))
    if len(whole) + len(fixed) + len(period) > 60:
        return match.group()
    ninths = (10 ** len(period) - 1) * 10 ** len(fixed)
    number = Fraction(int((whole or "0") + fixed + period) - int((whole or "0") + fixed), ninths)
    return f"\\frac{{{number.numerator}}}{{{number.denominator}}}"
