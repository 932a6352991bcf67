r"""Normalise answers: one spelling, unit and percent sign split off, numbers read exactly.

Answers that need no algebra are decided by the normal form (compare_forms.py); the others reach the parser of
math-verify in spellings that it reads correctly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from verl_s2d.verifiers.math import numerals
from verl_s2d.verifiers.math.spelling import spell
from verl_s2d.verifiers.math.units import split_unit

_TEXT = re.compile(r"\(?\s*\\text\{([^{}]*[A-Za-z][^{}]*)\}\s*\)?")
_LEADING = re.compile(
    r"(?:=|\\approx(?![A-Za-z])"
    r"|(?:\\text\{\s*)?(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|:|=)?\s*:?\s*\}?(?=[^A-Za-z\s]|\s+\S))\s*",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:\\text\{\s*\(?\s*([A-H])\s*[).:]\s*\}|\(\s*(?:\\text\{)?([A-H])\s*\}?\)\s|([A-H])[.):]\s"
    r"|\\text\{\s*\(?\s*([A-H])\s*\)\s+(?=\d[^{}]*\}$))\s*(?=[^\s+*/^_!=<>,;:.)-]|-\s?[\d\\])(?!.*\([A-H]\)|.*\b[A-H][.):]|[A-H]$)"
)
"""The letter of a multiple choice before its answer, and no other letter after it."""
_JUXTAPOSED = re.compile(r"((?<![\w.^\\}])\d+|\))\s*(?=\([^(),\[\]]*\))")
"""A factor before parentheses. The parser would add the two, as in a mixed number."""
_WORDS = re.compile(r"[a-z0-9.,:;'()\s]*")
_ARTICLE = re.compile(r"^\W*(?:an?|the)\s+")
_JOINED = re.compile(r"(?<=[a-z]{2})-(?=[a-z]{2})")
_REMOVABLE_SPACE = re.compile(r"(?<![\d.]) | (?![\d.])")
_MONEY = re.compile(r"\s*\\?\$[^$]*|[^$]*\\?\$\s*")


@dataclass(frozen=True)
class Answer:
    """An answer in normal form.

    Attributes:
        text: TeX without unit, percent and degree sign.
        unit: a known unit with its power ("cm^2", "degree", "dollar"); None without one or if it is unknown.
        percent: a percent sign was removed.
        base: the base of a number such as 52_8, in decimal; `text` then has the number's digits.
        decimal: `value` was written with a decimal point.
        value: the number, if the answer is an integer, a decimal or a ratio of integers.
        is_text: the answer is words, all in one \\text{}, and no formula.
        choice: the letter before the answer of a multiple choice: "A" of "(A) 5".
    """

    text: str
    unit: str | None = None
    percent: bool = False
    base: str | None = None
    decimal: bool = False
    value: Fraction | None = None
    is_text: bool = False
    choice: str | None = None

    @property
    def tight(self) -> str:
        """Remove spaces, except between digits: 1 2 is not 12."""
        return _REMOVABLE_SPACE.sub("", self.text)

    @property
    def words(self) -> str | None:
        """Extract letters and digits in lower case, to compare words: (C) gives "c"; None if there are operators."""
        text = _JOINED.sub(" ", self.text.lower().replace(r"\text", "").replace("{", "").replace("}", ""))
        return re.sub(r"[^a-z0-9]", "", _ARTICLE.sub("", text)) if _WORDS.fullmatch(text) else None


def normal_form(answer: str) -> Answer:
    """Normalise an answer, in time linear in its length; numbers are read exactly."""
    money = bool(_MONEY.fullmatch(answer))
    text = spell(answer.replace(r"\$", "$") if answer.count("$") == 1 else answer)
    text = _LEADING.sub("", text, count=1) if _LEADING.match(text) else text
    text = text.strip().rstrip(".,;\\").strip()
    if match := _CHOICE.match(text):
        rest = text[match.end() :]
        return replace(normal_form(rest.rstrip("}") if match.group(4) else rest), choice=match[match.lastindex])
    if written := _TEXT.fullmatch(text):
        inner = written.group(1).strip()
        if not re.search(r"\d", inner):
            return Answer(inner, is_text=True)
        text = inner.strip("()").strip() if re.fullmatch(r"\(\s*[\d.]+\s*\)", inner) else inner
    based = numerals.in_base(text)
    if based:
        return Answer(based[0], base=based[1])
    # The sides of an equation have units of their own.
    text, unit, percent, scale = (text, None, False, 1) if "=" in text else split_unit(text)
    text = numerals.plain_number(text.strip())
    text = _JUXTAPOSED.sub(r"\1\\cdot ", text)
    number, decimal = numerals.value(text)
    if scale != 1:
        number, decimal = (number * scale if number is not None else None), False
        text = f"{scale}\\cdot({text})" if number is None else str(number)
    return Answer(text, "dollar" if money and unit is None else unit, percent, decimal=decimal, value=number)
