"""Decide whether two answers are equivalent, with math-verify. Runs in a process that may be killed at any time.

math-verify simplifies the difference of two answers, which may never end. So answers that are too costly to evaluate
are rejected by size, and formulas are first evaluated at a few points: a difference there refutes equivalence,
agreement to 25 digits is accepted, and only formulas that cannot be evaluated are simplified.
"""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import mpmath
import sympy
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
from latex2sympy2_extended.sets import FiniteSet
from math_verify import verify
from math_verify.grader import is_equation, take_last_relation
from math_verify.parser import parse_latex_cached

# Both libraries report every text that does not parse.
logging.disable(logging.CRITICAL)

MAX_DIGITS = 2_000
"""Digits of any number that evaluating an answer would produce; a symbol counts as 10 in a power."""
MAX_NODES = 2_000


def _number(text: str) -> sympy.Number:
    """Convert the lexer's number safely; the parser would call sympy.Number(text), which runs the text as Python."""
    text = text.replace(",", "").replace(" ", "")
    return sympy.Integer(text) if text.isdecimal() else sympy.Float(text)


latex2sympy2._Latex2Sympy.parse_number = staticmethod(_number)
latex2sympy2.convert_number = _number

_SPELLING = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)
_TOLERANCE = 2e-6
"""Relative tolerance; math-verify rounds to 6 decimals, which makes all small numbers equal."""
_EXACT = 1e-25
_NEGLIGIBLE = 1e-30
"""Largest absolute value that evaluation may return for an exact zero."""
_DIGITS = 50
"""Digits of values at points; far more than _EXACT needs, because differences lose some."""
_PROBES = (137 / 191, -211 / 89, 503 / 131)
_PIECEWISE = (sympy.Abs, sympy.floor, sympy.ceiling, sympy.sign, sympy.Min, sympy.Max, sympy.Mod, sympy.Piecewise)
"""Functions for which agreement at a few points proves little."""


def agree(truth: str, answer: str) -> bool:
    """Tell whether `answer` is equivalent to `truth`, both TeX without dollar signs. Unparsable text is not."""
    gold, found = _parse(truth), _parse(answer)
    if gold is None or found is None or _too_large(found):
        return False
    if isinstance(gold, sympy.Interval | sympy.Tuple) and isinstance(found, FiniteSet):
        # The answer lists values of an ordered pair; math-verify would sort them.
        found = sympy.Tuple(*found._unsorted_args)
    if isinstance(gold, sympy.Expr) and is_equation(found):
        # math-verify compares only c of `a = b = c` with a value; taking c here lets the points below decide first.
        found = take_last_relation(found).rhs
    several = found.args if isinstance(found, sympy.FiniteSet | sympy.Tuple) and isinstance(gold, sympy.Expr) else ()
    if any(_same_at_points(gold, member) is False for member in several):
        return False
    same = _same_at_points(gold, found)
    if same is not None:
        return same
    # Its time limit is an alarm signal, which cannot interrupt slow computations; ours ends the process.
    return bool(verify(gold, found, allow_set_relation_comp=True, timeout_seconds=None))


def warm_up() -> None:
    """Pay for lazy imports and the parser's tables once, before the process is forked."""
    pairs = [
        (r"\frac{1}{2}", "0.5"),
        (r"\sqrt{8}+\pi", r"2\sqrt{2}+\pi"),
        (r"[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} )", r"[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} )"),
        (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty, 2) \cup (3, \infty)"),
        (r"x^8 - 2x + 1", "(x^7-2)x+1"),
        (r"\begin{pmatrix} 1/5 & -1 \\ 2 & 3\end{pmatrix}", r"\begin{pmatrix} 0.2 & -1 \\ 2 & 3\end{pmatrix}"),
        (r"\sin x + \cot x + e^{i}", r"\sin x + \cot x + e^{i}"),
        (r"1 \pm \sqrt{3}", r"1+\sqrt{3}, 1-\sqrt{3}"),
        (r"x + 2y = 3", "2x+4y=6"),
        (r"(1, -2, 3)", "(1, -2, 3)"),
        (r"x \in [-2,7]", r"-2 \le x \le 7"),
        (r"5!", r"\binom{6}{3} \log_2 64"),
        (r"|x|", r"\lfloor x \rfloor"),
    ]
    for truth, answer in pairs:
        agree(truth, answer)


def _parse(text: str) -> Any:
    """Parse TeX into a sympy object, or None."""
    try:
        parsed = parse_latex_cached(normalize_latex(text, _SPELLING))
    except Exception:
        return None
    if isinstance(parsed, sympy.Expr):
        imaginary = {symbol: sympy.I for symbol in parsed.free_symbols if symbol.name == "i"}
        return parsed.xreplace(imaginary) if imaginary else parsed
    return parsed if isinstance(parsed, sympy.Basic | sympy.MatrixBase) else None


def _too_large(parsed: Any) -> bool:
    parts = list(parsed) if isinstance(parsed, sympy.MatrixBase) else [parsed]
    nodes = itertools.chain.from_iterable(sympy.preorder_traversal(part) for part in parts)
    if next(itertools.islice(nodes, MAX_NODES, None), None) is not None:
        return True
    return any(_digits(part) > MAX_DIGITS for part in parts)


def _digits(node: Any) -> float:
    """Bound the decimal digits of the largest number that evaluating `node` produces; may be math.inf."""
    if isinstance(node, sympy.Rational):
        return (abs(node.p).bit_length() + node.q.bit_length()) * 0.302
    if isinstance(node, sympy.Float):
        return 17 + abs(node._mpf_[2] + node._mpf_[3]) * 0.302
    below = [_digits(argument) for argument in node.args]
    if not below:
        return 1
    if isinstance(node, sympy.Pow):
        return max(*below, max(below[0], 1) * _magnitude(node.exp, below[1]))
    if isinstance(node, sympy.factorial | sympy.gamma | sympy.binomial):
        size = _magnitude(node.args[0], below[0])
        return max(*below, size * math.log10(size + 10))
    if isinstance(node, sympy.exp | sympy.sinh | sympy.cosh | sympy.tanh):
        return max(below[0], _magnitude(node.args[0], below[0]))
    return sum(below)


def _magnitude(node: Any, digits: float) -> float:
    """Estimate |node|, at least 1, for an exponent or argument of the given number of digits."""
    if isinstance(node, sympy.Rational):
        return max(1.0, abs(node.p) / node.q) if digits < 300 else math.inf
    return 10.0**digits if digits < 300 else math.inf


def _same_at_points(gold: Any, found: Any) -> bool | None:
    """Tell whether two formulas have the same values; None if a few points cannot decide it."""
    if not (isinstance(gold, sympy.Expr) and isinstance(found, sympy.Expr)):
        return None
    if isinstance(gold, sympy.Symbol) or isinstance(found, sympy.Symbol):
        # A symbol may be a word that the parser reads as a product of letters on the other side.
        return None
    certain = not (gold.has(sympy.Float, *_PIECEWISE) or found.has(sympy.Float, *_PIECEWISE))
    names = sorted({symbol.name for symbol in gold.free_symbols | found.free_symbols})
    for probe in _PROBES if names else _PROBES[:1]:
        # Floats: powers of fractions would be factorised.
        point = {name: sympy.Float(probe + number / 7, _DIGITS) for number, name in enumerate(names)}
        first, second = _value(gold, point), _value(found, point)
        if first is None or second is None:
            return None
        size, difference = max(abs(first), abs(second)), abs(first - second)
        if difference > max(_TOLERANCE * size, _NEGLIGIBLE):
            return False
        certain = certain and difference <= max(_EXACT * size, _NEGLIGIBLE)
    return True if certain else None


def _value(expression: sympy.Expr, point: dict[str, sympy.Float]) -> mpmath.mpc | None:
    """Evaluate `expression` at `point`; None if the value is not finite."""
    try:
        value = expression.subs({symbol: point[symbol.name] for symbol in expression.free_symbols}).evalf(_DIGITS)
        real, imaginary = value.as_real_imag()
        with mpmath.workdps(_DIGITS):
            value = mpmath.mpc(real._to_mpmath(170), imaginary._to_mpmath(170))
    except (TypeError, ValueError, OverflowError, AttributeError, ArithmeticError):
        return None
    return value if mpmath.isfinite(value) else None
