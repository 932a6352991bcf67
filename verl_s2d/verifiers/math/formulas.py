r"""Parse single formulas with math-verify's parser, and bound what evaluating them may cost."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy2
from sympy.core.function import AppliedUndef

MAX_DIGITS = 2_000
"""Digits of any number that evaluating a formula would produce."""
MAX_NODES = 2_000
POINTS = tuple(
    (sympy.Rational(*first), sympy.Rational(*step))
    for first, step in (
        ((137, 191), (1, 7)),
        ((-211, 89), (-2, 13)),
        ((503, 131), (3, 11)),
        ((29, 97), (5, 17)),
        ((-37, 101), (1, 19)),
    )
)
"""Where formulas are compared: the value of the first letter, and the step to the next. No two steps are alike."""


def _number(text: str) -> sympy.Rational:
    """Convert the lexer's number exactly; the parser would call sympy.Number(text), which runs the text as Python."""
    text = text.replace(",", "").replace(" ", "")
    return sympy.Integer(text) if text.isdecimal() else sympy.Rational(text)


latex2sympy2._Latex2Sympy.parse_number = staticmethod(_number)
latex2sympy2.convert_number = _number

_CASE = latex2sympy2.ConversionConfig(lowercase_symbols=False)
_REFUSED = re.compile(
    r"[\d.]\s+[\d.]|\d\s*_|\\_|[?']|\\(?:prime|top)(?![A-Za-z])|(?:\\[lr]?dots|\\cdots)(?![A-Za-z])|[=<>]|\\(?:le|ge|ne|in|approx)(?![A-Za-z])"
)
"""Texts that the parser reads in part only, or as something else: 1 2 as a sum, 1.1_2 without its base."""
_SYMBOLS = [
    # Letters that the grammar takes for the exponent of 2E5, the imaginary unit and differentials.
    (re.compile(r"(?<![\\A-Za-z{])E(?=_)"), r"\\text{E}"),
    (re.compile(r"(?<![A-Za-z\\])((?:[A-Z](?=[A-Z]))*)I(?!\s*\()(?![a-z])"), r"\1\\text{I}"),
    (re.compile(r"\\gamma(?![A-Za-z])"), r"\\text{gamma}"),
    (re.compile(r"\^\{\s*T\s*\}"), r"^{\\text{T}}"),
    (re.compile(r"([A-Za-z])('+)"), lambda m: rf"\text{{{m.group(1)}{'prime' * len(m.group(2))}}}"),
    (re.compile(r"_\{\s*\\(?:text|mathrm|operatorname)?\s*\{?([A-Za-z]+)\s*\}?\s*\}"), r"_{\1}"),
]
_DIFFERENTIALS = re.compile(r"\\(?:int|frac\{\s*(?:d|\\partial))|\\partial")
_D = re.compile(r"(?<![\\A-Za-z])((?:[A-Za-ce-z])*)d(?=\s*[A-Za-z\\])")


def parse(text: str) -> Any:
    """Parse TeX into a sympy formula or matrix, or None; numbers are exact, and i is the imaginary unit."""
    if _REFUSED.search(text):
        return None
    for pattern, replacement in _SYMBOLS:
        text = pattern.sub(replacement, text)
    if not _DIFFERENTIALS.search(text):
        text = _D.sub(r"\1\\text{d}", text)
    try:
        parsed = latex2sympy2.latex2sympy(
            text, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=_CASE
        )
    except Exception:
        return None
    if isinstance(parsed, sympy.MatrixBase):
        large = parsed.rows * parsed.cols > MAX_NODES or any(map(too_large, parsed))
        return None if large else parsed.applyfunc(_settled)
    return _settled(parsed) if isinstance(parsed, sympy.Expr) and not too_large(parsed) else None


def _settled(formula: sympy.Expr) -> sympy.Expr:
    """Evaluate what the parser leaves unevaluated, with one symbol for every name."""
    named = {function: sympy.Symbol(str(function), real=True) for function in formula.atoms(AppliedUndef)}
    formula = formula.xreplace(named)
    named = {s: sympy.I if s.name == "i" else sympy.Symbol(s.name, real=True) for s in formula.free_symbols}
    return formula.xreplace(named).doit()


def fold_case(first: sympy.Expr, second: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Write all letters small, unless one of the two formulas has a letter in both cases."""
    for formula in (first, second):
        names = [symbol.name for symbol in formula.free_symbols]
        if len({name.lower() for name in names}) < len(names):
            return first, second
    small = {s: sympy.Symbol(s.name.lower(), real=True) for s in first.free_symbols | second.free_symbols}
    return first.xreplace(small), second.xreplace(small)


def points(*formulas: sympy.Expr) -> list[dict[sympy.Symbol, sympy.Rational]]:
    """List the points at which formulas are compared, as values of their letters."""
    symbols = sorted(set().union(*(formula.free_symbols for formula in formulas)), key=lambda symbol: symbol.name)
    if not symbols:
        return [{}]
    return [{s: first + n * step for n, s in enumerate(symbols)} for first, step in POINTS]


def too_large(formula: sympy.Expr) -> bool:
    """Tell whether a formula has too many parts, or evaluating it would produce too many digits."""
    nodes = sympy.preorder_traversal(formula)
    if next(itertools.islice(nodes, MAX_NODES, None), None) is not None:
        return True
    return digits(formula) > MAX_DIGITS


def digits(node: Any) -> float:
    """Bound the decimal digits of the largest number that evaluating `node` at a point produces; may be math.inf."""
    if isinstance(node, sympy.Rational):
        return max(abs(node.p).bit_length(), node.q.bit_length()) * 0.302
    if isinstance(node, sympy.Symbol):
        return 0.7
    below = [digits(argument) for argument in node.args]
    if not below:
        return 1
    if isinstance(node, sympy.Pow | sympy.exp):
        base, exponent = (below[0], node.exp) if isinstance(node, sympy.Pow) else (0.44, node.args[0])
        return max(*below, base * _magnitude(exponent, below[-1]), 1)
    if isinstance(node, sympy.factorial | sympy.gamma | sympy.binomial):
        size = _magnitude(node.args[0], below[0])
        return max(*below, size * math.log10(size + 10))
    if isinstance(node, sympy.sinh | sympy.cosh | sympy.tanh):
        return max(below[0], _magnitude(node.args[0], below[0]))
    return sum(below)


def _magnitude(node: Any, bound: float) -> float:
    """Estimate the largest |node| at the points, at least 1, for an exponent or argument of `bound` digits."""
    if bound >= 300:
        return math.inf
    if isinstance(node, sympy.Rational):
        return max(1.0, abs(node.p) / node.q)
    try:
        return max(1.0, *(float(abs(sympy.N(node, 5, subs=point))) for point in points(node)))
    except (TypeError, ValueError, ArithmeticError):
        return 10.0**bound
