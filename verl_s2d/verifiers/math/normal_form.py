r"""Normalise answers: remove TeX commands without effect, unify synonyms, split off units and percent signs.

Answers that need no algebra are decided by the normal form; the others reach math-verify in spellings that it parses
correctly. math-verify reads `3 1/2` as a product, does not support repeating decimals, and drops the base of `52_8`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_CHARACTERS = str.maketrans(
    {
        **{"−": "-", "–": "-", "‐": "-", "’": "'", "，": ",", "（": "(", "）": ")", "％": "%"},
        **{
            "\u00a0": " ",
            "\u202f": " ",
            "\u2009": " ",
            "\u200b": "",
            "\ufeff": "",
            "~": " ",
            "$": "",
            "\n": " ",
            "\t": " ",
        },
        **{"π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "±": r"\pm ", "°": r"^\circ "},
        **{"≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "≠": r"\ne "},
        **{"½": r"\frac{1}{2}", "²": "^{2}", "³": "^{3}", "¢": r"\text{ cents}", "€": "", "£": ""},
    }
)
_SPACES = (re.compile(r"\s+"), " ")
_SYNONYMS = [
    _SPACES,
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?"), ""),
    (re.compile(r"(?<!\\)\\!\s*"), ""),
    (re.compile(r"(?<!\\)\\[,;:>$ ]|\{,\}"), lambda m: {"{,}": ",", "\\ ": " "}.get(m.group(), "")),
    (re.compile(r"\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\dbinom|\\tbinom"), r"\\binom"),
    (
        re.compile(r"\\(?:mbox|hbox|mathrm|textrm|textbf|textit|textnormal|textsf|texttt|mathbf|mathit|rm)\s*\{"),
        r"\\text{",
    ),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\begin\{[bBvp]?matrix\}|\\begin\{array\}\{[^{}]*\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{[bB]?matrix\}|\\end\{array\}"), r"\\end{pmatrix}"),
    (re.compile(r"[\(\[]\s*(\\begin\{pmatrix\})"), r"\1"),
    (re.compile(r"(\\end\{pmatrix\})\s*[\)\]]"), r"\1"),
    (re.compile(r"\s*\\text\{\s*(?:and|or)\s*\}\s*|\s*,\s*and\s+|(?<=[\w})])\s+(?:and|or)\s+"), ", "),
    _SPACES,
]
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|\\text\{\s*degrees?\s*\}|\bdegrees?)\s*$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|\\?%)\s*\}|\bpercent)\s*$")
_POWER = r"\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*$"
_TEXT_UNIT = re.compile(r"(?<=[\d}\w)])\s*\\text\{\s*([^{}]{0,60}?)\s*\}" + _POWER)
_WORD_UNIT = re.compile(r"(?<=[\d}])\s+((?:square |cubic |sq\.? |cu\.? )?[A-Za-z]{2,12}\.?)" + _POWER)
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\{?(\d+)\}?")
_MIXED = re.compile(r"(?<![\d.^_}])(\d{1,12})\s+(\d{1,12})\s*/\s*(\d{1,12})(?!\d)")
_MIXED_TEX = re.compile(r"([-+]?)(\d{1,30})\s*\\frac\{(\d{1,30})\}\{(\d{1,30})\}")
_JUXTAPOSED = re.compile(r"((?<![\w.^\\}])\d+|\))\s*(?=\([^(),\[\]]*\))")
"""A factor before parentheses. math-verify would add the two, as in a mixed number."""
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_RATIO = re.compile(
    r"([-+]?)(?:\\frac\s*(?:\{([-+]?\d+)\}\s*\{([-+]?\d+)\}|(\d)\s*(\d)|(\d)\s*\{(\d+)\}|\{(\d+)\}\s*(\d))"
    r"|(\d+)\s*/\s*(\d+))"
)
_BASE = re.compile(r"([0-9A-Za-z]{1,200})_\s*(?:\{\s*(?:\\text\{)?\s*(\w{1,8})\s*\}?\s*\}|(\d))")
_BASE_WORDS = {
    **{"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"},
    **{"ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"},
}
_TEXT = re.compile(r"\(?\s*\\text\{([^{}]*[A-Za-z][^{}]*)\}\s*\)?")
_NOT_LETTERS = re.compile(r"[^a-z0-9]+")
_ARTICLE = re.compile(r"^\W*(?:an?|the)\s+")

_UNITS = {
    name: canonical
    for canonical, names in {
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "s": "s sec second seconds",
        "min": "min minute minutes",
        "h": "h hr hrs hour hours",
        "day": "day days",
        "week": "week weeks",
        "month": "month months",
        "year": "year years",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "lb": "lb lbs pound pounds",
        "l": "l liter liters litre litres",
        "ml": "ml milliliter milliliters",
        "mph": "mph",
        "cent": "cent cents",
        "dollar": "dollar dollars",
        "unit": "unit units",
        "radian": "radian radians rad",
    }.items()
    for name in names.split()
}


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
    """

    text: str
    unit: str | None = None
    percent: bool = False
    base: str | None = None
    decimal: bool = False
    value: Fraction | None = None
    is_text: bool = False

    @property
    def tight(self) -> str:
        return self.text.replace(" ", "")

    @property
    def letters(self) -> str:
        """Extract letters and digits in lower case, to compare words: (C) gives "c"."""
        return _NOT_LETTERS.sub("", _ARTICLE.sub("", self.text.lower().replace(r"\text", "")))


def normal_form(answer: str) -> Answer:
    """Normalise an answer, in time linear in its length; numbers are read exactly."""
    text = answer.replace(r"\$", "$")
    unit = "dollar" if text.lstrip().startswith("$") and text.count("$") == 1 else None
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;").strip()
    if written := _TEXT.fullmatch(text):
        inner = written.group(1).strip()
        if not re.search(r"\d", inner):
            return Answer(inner, is_text=True)
        text = inner
    text, found = _DEGREES.subn("", text)
    unit = "degree" if found else unit
    text, percent = _PERCENT.subn("", text)
    if not found and not percent:
        text, written = _without_unit(text)
        unit = written or unit
    text = text.strip()
    based = _BASE.fullmatch(text)
    if based:
        base = (based.group(2) or based.group(3)).lower()
        if (base := _BASE_WORDS.get(base, base)).isdecimal() and based.group(1)[0].isdigit():
            return Answer(based.group(1).upper(), base=base)
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    text = _REPEATING.sub(_repeating, text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _JUXTAPOSED.sub(r"\1\\cdot ", text)
    value, decimal = _value(text)
    return Answer(text, unit=unit, percent=bool(percent), decimal=decimal, value=value)


def _without_unit(text: str) -> tuple[str, str | None]:
    match = _TEXT_UNIT.search(text) or _WORD_UNIT.search(text)
    if not match:
        return text, None
    words = match.group(1).lower().rstrip(".").split()
    power = match.group(2)
    if words and words[0] in ("square", "sq", "sq.", "cubic", "cu", "cu."):
        power = "2" if words[0].startswith("s") else "3"
        words = words[1:]
    name = _UNITS.get(words[0]) if len(words) == 1 else None
    if name is None and match.re is _WORD_UNIT:
        return text, None
    if name == "unit":
        name = None
    return text[: match.start()], f"{name}^{power}" if name and power else name


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = (match.group(i) for i in (1, 2, 3))
    if len(whole) + len(fixed) + len(period) > 60:
        return match.group()
    ninths = (10 ** len(period) - 1) * 10 ** len(fixed)
    value = Fraction(int((whole or "0") + fixed + period) - int((whole or "0") + fixed), ninths)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _value(text: str) -> tuple[Fraction | None, bool]:
    """Read an integer, a decimal or a ratio of integers: (exact value or None, written as a decimal)."""
    tight = text.replace(" ", "")
    if len(tight) > 400:
        return None, False
    if _DECIMAL.fullmatch(tight):
        return Fraction(tight), "." in tight
    if mixed := _MIXED_TEX.fullmatch(text.strip()):
        sign, whole, top, bottom = mixed.groups()
        if int(bottom) == 0:
            return None, False
        value = int(whole) + Fraction(int(top), int(bottom))
        return (-value if sign == "-" else value), False
    if ratio := _RATIO.fullmatch(text.strip()):
        sign, *numbers = ratio.groups()
        top, bottom = (int(number) for number in numbers if number is not None)
        if bottom == 0:
            return None, False
        value = Fraction(top, bottom)
        return (-value if sign == "-" else value), False
    return None, False
