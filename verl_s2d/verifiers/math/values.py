"""Decide whether two formulas have the same value, without floating-point tolerance.

Rational numbers are compared exactly. All else is evaluated, at points if there are letters, to more digits than a
difference of one in the last place of any number involved would take.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import sympy

from verl_s2d.verifiers.math.formulas import digits, fold_case, points
from verl_s2d.verifiers.math.numerals import stands_for

_GUARD = 60
"""Digits beyond those of the numbers involved, for what their difference cancels."""
_PIECEWISE = (sympy.Abs, sympy.floor, sympy.ceiling, sympy.sign, sympy.Min, sympy.Max, sympy.Mod, sympy.Piecewise)
_INTEGERS = (2, -3, 5, 1)
"""More points for functions that are the same at most points and differ at integers."""


def same_value(gold: Any, found: Any) -> bool:
    """Tell whether two formulas or matrices are equal."""
    if isinstance(gold, sympy.MatrixBase) or isinstance(found, sympy.MatrixBase):
        both = isinstance(gold, sympy.MatrixBase) and isinstance(found, sympy.MatrixBase)
        return both and gold.shape == found.shape and all(map(same_value, gold, found))
    gold, found = fold_case(gold, found)
    if gold == found:
        return True
    if gold.is_Rational and found.is_Rational:
        return False
    evaluated = False
    for same in _at_points(gold, found):
        if not same:
            return False
        evaluated = True
    return evaluated or bool(sympy.simplify(gold - found) == 0)


def decimal_stands_for(decimal: str, exact: sympy.Expr) -> bool:
    """Tell whether a decimal is a number that has no end, rounded or cut off (numerals.stands_for)."""
    value = sympy.N(exact, len(decimal) + _GUARD)
    if exact.free_symbols or not value.is_Float:
        return False
    number = sympy.Rational(value)
    return stands_for(decimal, Fraction(int(number.p), int(number.q)))


def proportional(first: sympy.Expr, second: sympy.Expr) -> int:
    """Compare two formulas up to a constant factor: its sign (1 for a complex one), or 0 if there is no such factor."""
    first, second = fold_case(first, second)
    if not first.free_symbols or first.free_symbols != second.free_symbols:
        return 0
    places = precision(first, second)
    factor = None
    for point in points(first, second):
        values = [sympy.N(side, places, subs=point) for side in (first, second)]
        if not all(value.is_number and value.is_finite and value != 0 for value in values):
            continue
        if factor is None:
            factor = values[0] / values[1]
        elif sympy.Abs(values[0] / (factor * values[1]) - 1) > sympy.Float(10) ** (_GUARD // 2 - places):
            return 0
    if factor is None:
        return 0
    return -1 if factor.is_negative else 1


def precision(*formulas: sympy.Expr) -> int:
    """Digits to evaluate to, such that all the numbers in formulas count."""
    return _GUARD + 2 * int(sum(map(digits, formulas)))


def _at_points(gold: sympy.Expr, found: sympy.Expr) -> Iterator[bool]:
    """Compare at the points where both are real, or at all points if none is; nothing if none can be evaluated."""
    places, difference = precision(gold, found), gold - found
    all_points = points(gold, found)
    if gold.free_symbols | found.free_symbols and (gold.has(*_PIECEWISE) or found.has(*_PIECEWISE)):
        all_points += [{symbol: sympy.Integer(n) for symbol in all_points[0]} for n in _INTEGERS]
    complex_anyway = gold.has(sympy.I) or found.has(sympy.I)
    unreal = []
    real = False
    for point in all_points:
        if not complex_anyway and not all(_is_real(side, point) for side in (gold, found)):
            unreal.append(point)
            continue
        verdict = _is_zero(difference, point, places)
        if verdict is not None:
            real = True
            yield verdict
    for point in [] if real else unreal:
        verdict = _is_zero(difference, point, places)
        if verdict is not None:
            yield verdict


def _is_real(formula: sympy.Expr, point: dict[sympy.Symbol, sympy.Rational]) -> bool:
    """Tell whether a formula is real at a point, and so are all its powers and logarithms."""
    for part in (formula, *formula.atoms(sympy.Pow, sympy.log)):
        try:
            imaginary = sympy.N(part, 15, subs=point).as_real_imag()[1]
        except (TypeError, ValueError, ArithmeticError):
            return False
        if imaginary != 0 and getattr(imaginary, "_prec", 0) != 1:
            return False
    return True


def _is_zero(difference: sympy.Expr, point: dict[sympy.Symbol, sympy.Rational], places: int) -> bool | None:
    """Tell whether a difference vanishes at a point; None if it has no finite value there."""
    try:
        value = difference.evalf(15, subs=point, maxn=places)
        parts = value.as_real_imag()
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    if not all(part.is_Number and part.is_finite for part in parts):
        return None
    # sympy raises its precision until a sum has significant digits; one that has none at `places` is zero.
    return all(part == 0 or part._prec == 1 for part in parts)
