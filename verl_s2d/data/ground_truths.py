r"""Convert published answers to ground truths in a canonical spelling, or None if a verifier could not use them."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["integer", "formula"]

MAX_CHARACTERS = 1000
"""The longest answer of MATH-500 has 159."""

_INTEGER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)")
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)$")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = r"\boxed{"


def ground_truth(answer: str, kind: Kind) -> str | None:
    r"""Convert an answer to the text to compare with, without enclosing $ $ and \boxed{}; None if unusable.

    `integer` (DAPO, AIME): decimal digits without leading zeros, grouping commas or a degree sign: "025" becomes "25",
    and "336^\circ" becomes "336". `formula` (MATH): LaTeX with balanced braces, as published.
    """
    text = _bare(answer)
    if kind == "formula":
        return text if 0 < len(text) <= MAX_CHARACTERS and _closes(text) == len(text) else None
    number = _INTEGER.fullmatch(_DEGREES.sub("", text))
    if number is None or len(text) > MAX_CHARACTERS:
        return None
    digits = number.group(2).replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if number.group(1) == "-" and digits != "0" else digits


def last_box(text: str) -> str | None:
    r"""Return the content of the last \boxed{} of a solution; None without one, or if its braces do not close."""
    _, box, rest = text.rpartition(_BOX)
    return rest[: _closes(rest)] if box and 0 <= _closes(rest) < len(rest) else None


def _bare(text: str) -> str:
    text = text.strip()
    while len(text) > 2 and text[0] == text[-1] == "$" and text[-2] != "\\":
        text = text[1:-1].strip()
    if text.startswith(_BOX) and text.endswith("}") and _closes(text[len(_BOX) :]) == len(text) - len(_BOX) - 1:
        return _bare(text[len(_BOX) : -1])
    return text


def _closes(text: str) -> int:
    """Return the index of the first unmatched closing brace; the text's length if braces are balanced, else -1."""
    depth = 0
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return brace.start()
    return len(text) if depth == 0 else -1
