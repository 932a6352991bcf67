"""Compare what a program gave with what its test expects."""

from __future__ import annotations

import math
from typing import Any

RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""Tolerance of numbers that are no integers; 1e-6 is what most such problems ask for."""


def same_text(found: str, expected: str) -> bool:
    """Tell whether two outputs have the same lines of the same words; decimals may differ by the tolerance.

    Blank lines and the amount of space between words do not count.
    """
    one, other = ([line.split() for line in text.splitlines() if line.strip()] for text in (found, expected))
    return len(one) == len(other) and all(
        len(a) == len(b) and all(map(_same_word, a, b)) for a, b in zip(one, other, strict=True)
    )


def same_result(found: Any, expected: Any) -> bool:
    """Tell whether a call's result is what JSON could write of the expected one: a tuple is a list, keys are texts.

    APPS writes some results as a list of one.
    """
    found = _as_json(found)
    if _close(found, _as_json(expected)):
        return True
    return isinstance(expected, list) and len(expected) == 1 and _close(found, _as_json(expected[0]))


def same_value(found: Any, expected: Any) -> bool:
    """Tell whether two plain values are equal, as Python's == does."""
    return type(found) is not type(...) and bool(found == expected)


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    if not any(mark in expected for mark in ".eE"):
        return False
    try:
        return _close(float(found), float(expected))
    except ValueError:
        return False


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value


def _close(found: Any, expected: Any) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_close, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_close(found[key], expected[key]) for key in found)
    if isinstance(expected, float) and isinstance(found, int | float) and not isinstance(found, bool):
        if not math.isfinite(expected):
            return found == expected
        return math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return type(found) is not type(...) and bool(found == expected)
