r"""Split off what follows a number and is no part of it: units, degrees, percent signs, ordinals and words of scale."""

from __future__ import annotations

import re

UNITS = {
    name: canonical
    for canonical, names in {
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters millimetre millimetres",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "s": "s sec secs second seconds",
        "min": "min mins minute minutes",
        "h": "h hr hrs hour hours",
        "day": "day days",
        "week": "week weeks",
        "month": "month months",
        "year": "yr yrs year years",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "mg": "mg milligram milligrams",
        "ton": "ton tons tonne tonnes",
        "lb": "lb lbs pound pounds",
        "oz": "oz ounce ounces",
        "l": "l liter liters litre litres",
        "ml": "ml milliliter milliliters millilitre millilitres",
        "gallon": "gal gallon gallons",
        "mph": "mph mi/h mi/hr miles/hour miles/hr mile/hour",
        "km/h": "km/h km/hr kmh kph kmph kilometers/hour kilometres/hour",
        "m/s": "m/s m/sec meters/second metres/second",
        "ft/s": "ft/s ft/sec feet/second",
        "cent": "cent cents",
        "dollar": "dollar dollars usd bucks",
        "unit": "unit units",
        "radian": "radian radians rad",
        "degree": "degree degrees deg",
        "celsius": "celsius",
        "fahrenheit": "fahrenheit",
        "kelvin": "kelvin kelvins",
        "joule": "j joule joules",
        "kilojoule": "kj kilojoule kilojoules",
        "newton": "n newton newtons",
        "watt": "w watt watts",
        "kilowatt": "kw kilowatt kilowatts",
        "volt": "v volt volts",
        "ampere": "amp amps ampere amperes",
        "ohm": "ohm ohms",
        "hertz": "hz hertz",
        "pascal": "pa pascal pascals",
        "mole": "mol mole moles",
    }.items()
    for name in names.split()
}
"""Spelling -> unit. A unit that is not listed is dropped, too, but can't tell two answers apart."""
SCALES = {
    **{"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"dozens": 12, "hundreds": 10**2, "thousands": 10**3, "millions": 10**6, "billions": 10**9},
}
_NO_UNITS = frozenset(
    re.findall(
        "[a-z]+",
        "and or but not no nor if unless except either neither maybe possibly perhaps probably also else "
        "about around approximately roughly nearly almost more less fewer most least plus minus times over "
        "mod modulo power squared cubed pi half third quarter twice double triple to from than is are was "
        "were equals equal point with without between mean any all none other another divided multiplied sqrt "
        "root factorial log sin cos tan base choose remainder undefined infinity infinite negative positive "
        "even odd prime otherwise when where for i e x y z tens halves thirds fourths fifths sixths sevenths "
        "eighths ninths tenths hundredths thousandths score gross lakh lakhs crore crores ",
    )
)
"""Words that change a number or the claim about it; no text that contains one is a unit."""

_LETTERS = frozenset("msghlLNJWV")
"""Units of one letter. M is a million to some, K a thousand."""
_POWER = r"\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*$"
_TEXT_UNIT = re.compile(r"(?<=[\d}\w)])\s*\\text\{\s*([^{}]{1,60}?)\s*\}" + _POWER)
_WORD_UNIT = re.compile(
    r"(?<=[\d}])\s+((?:square |cubic |sq\.? |cu\.? )?[A-Za-z]{2,12}(?:/[A-Za-z]{1,6})?\.?)" + _POWER
)
_SCALE_WORD = re.compile(rf"(?<=[\d}}])\s+({'|'.join(SCALES)})(?![A-Za-z])(.*)$")
_WORDS = re.compile(r"[A-Za-z]+(?:\s*/\s*[A-Za-z]+)?[.,]?(?:[-\s]+[A-Za-z]+(?:\s*/\s*[A-Za-z]+)?[.,]?)*")
_TEMPERATURE = re.compile(r"\s*\^\{\\circ\}\s*(?:\\text\{\s*)?([CF])\s*\}?$")
_DEGREES = re.compile(r"\s*(?:\^\{\\circ\}|\\text\{\s*degrees?\s*\}|(?<![A-Za-z\\])degrees?)\s*$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|pct\.?|\\?%)\s*\}|(?<![A-Za-z\\])(?:percent|pct\.?))\s*$")
_HALF_OF_DAY = re.compile(r"(?<=\d)\s*(?:\\text\{\s*)?([aApP])\.?\s?[mM]\.?\s*\}?\s*$")
_ORDINAL = re.compile(r"(?<=\d)\^?\{?(?:\\text\{\s*)?(?:st|nd|rd|th)\s*\}?\s*\}?$")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_INNER_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\{\\circ\}")


def split_unit(text: str) -> tuple[str, str | None, bool, int]:
    """Split an answer, spelt by `spell`, into (the rest, its unit, a percent sign was there, factor of its scale).

    The unit is a value of UNITS with a power ("cm^2"), "am", "pm", or None without one or for one that is not listed.
    """
    if _TRIGONOMETRY.search(text):
        return _INNER_DEGREES.sub(r"(\1\\pi/180)", text), None, False, 1
    for pattern, unit in ((_TEMPERATURE, {"C": "celsius", "F": "fahrenheit"}), (_HALF_OF_DAY, {"a": "am", "p": "pm"})):
        if match := pattern.search(text):
            letter = match.group(1)
            return text[: match.start()].strip(), unit.get(letter) or unit[letter.lower()], False, 1
    text, degrees = _DEGREES.subn("", text)
    text, percent = _PERCENT.subn("", text)
    if degrees or percent:
        return text.strip(), "degree" if degrees else None, bool(percent), 1
    text = _ORDINAL.sub("", text)
    scale = 1
    if match := _SCALE_WORD.search(text):
        rest = match.group(2).strip()
        if not rest or _unit(rest) is not None:
            return text[: match.start()].strip(), _unit(rest) if rest else None, False, SCALES[match.group(1)]
    match = _TEXT_UNIT.search(text)
    if match is None:
        match = _WORD_UNIT.search(text)
        name = _unit(match.group(1)) if match else None
        return (text[: match.start()], _powered(name, match), False, 1) if name else (text, None, False, 1)
    words = match.group(1)
    first, _, rest = words.partition(" ")
    if first.lower() in SCALES:
        scale, words = SCALES[first.lower()], rest.removeprefix("of ").strip()
    if words and not _is_unit(words):
        return text, None, False, 1
    return text[: match.start()], _powered(_unit(words), match), False, scale


def _is_unit(words: str) -> bool:
    """Tell whether text after a number may be dropped: words, none of which says anything about the number."""
    if not _WORDS.fullmatch(words):
        return False
    alone = words.rstrip(".")
    if len(alone) == 1:
        return alone in _LETTERS
    return not any(word in _NO_UNITS or word in SCALES for word in re.findall("[a-z]+", words.lower()))


def _unit(words: str) -> str | None:
    r"""Name a listed unit, of a word or of \text{}; None if it is not listed."""
    words = re.sub(r"\\text\{\s*([^{}]*?)\s*\}", r"\1", words).lower()
    words = re.sub(r"\s+per\s+|\s*/\s*", "/", words).replace(".", "").strip()
    power = ""
    first, _, rest = words.partition(" ")
    if rest and first in ("square", "sq", "cubic", "cu"):
        power, words = "^2" if first.startswith("s") else "^3", rest
    name = UNITS.get(words)
    return f"{name}{power}" if name else None


def _powered(name: str | None, match: re.Match[str]) -> str | None:
    if name in (None, "unit", "unit^2", "unit^3"):
        return None
    return f"{name}^{match.group(2)}" if match.group(2) else name
