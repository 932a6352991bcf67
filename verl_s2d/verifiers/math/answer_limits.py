r"""Reject text that is not a final answer, by the estimated cost of parsing and evaluating it.

The parser's time grows steeply with some kinds of nesting, and sympy's without bound. All limits are far above
the ground truths of MATH-500; a more complex ground truth raises them.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 400
"""Longest answer. The longest ground truth of MATH-500 has 159 characters."""
MAX_DEPTH = 7
"""Nested brackets of any kind."""
MAX_DEPTH_OF_NUMBERS = 3
MAX_DIGITS = 400
"""Consecutive digits in a formula; plain integers of any length are compared as text."""
MAX_COUNTS = {
    **{r"\^": 24, r"_": 16, r"/": 16, r"=": 5, r"!": 2, r"\|": 8, r"\\sqrt": 12},
    **{r"\\cup": 8, r"\\pm|\\mp": 3, r"\\sin|\\cos|\\tan": 8},
    r"(?<![\\A-Za-z])[A-Za-z]+": 64,
}
"""Pattern of a costly construct -> most occurrences; a quarter of these if the ground truth is a rational number."""

_LEFT_UNDONE = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf|operatorname|det|gcd|lcm|mod|bmod|pmod)(?![A-Za-z])"
    r"|\\(?:Gamma|gamma)\s*[({]|\\begin\{[vV]matrix\}|\\frac\s*\{\s*(?:d|\\partial)\s*\}\s*\{\s*(?:d|\\partial)"
)
"""Unevaluated operations, allowed only if the ground truth has them, too."""
_CHAINS = re.compile(r"(?:[-+]\s*){4}|(?:/\s*[\w.]+\s*){4}|(?:[\^_]\s*[A-Za-z0-9.]+\s*){4}|(?:\\text\{[^{}]*\}\W*){4}")
_NO_NUMBER = re.compile(r"\\(?:cup|cap|setminus|infty|emptyset|mathbb|begin|end)(?![A-Za-z])")
"""Sets, matrices and infinity."""
_EVALUATED_AT_ONCE = re.compile(r"\\binom|!")
_LONG_NUMBER = re.compile(r"\d{5,}")
_BRACKETS = re.compile(r"\\.|[()\[\]{}]", re.DOTALL)
_FREE_CONTROLS = "\n\t\r"


def is_too_long(answer: str, truth: str) -> bool:
    """Tell whether an answer is longer than any correct one could be."""
    return len(answer) > max(MAX_CHARACTERS, 3 * len(truth))


def is_unprintable(text: str) -> bool:
    """Tell whether a text has surrogate, control or private characters, as a tokenizer decodes broken bytes."""
    odd = (unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") for c in set(text) if c not in _FREE_CONTROLS)
    return any(odd) or "\ufffd" in text


def is_too_complex(answer: str, truth: str, *, rational: bool = False) -> bool:
    """Tell whether a formula is more complex than a final answer should be, relative to the ground truth.

    Args:
        rational: the ground truth is a rational number, which can be written in few ways.
    """
    if any(len(digits) > MAX_DIGITS for digits in re.findall(r"\d+", answer)):
        return True
    if any(p.search(answer) and not p.search(truth) for p in (_LEFT_UNDONE, _CHAINS)):
        return True
    if rational and _NO_NUMBER.search(answer):
        return True
    if _EVALUATED_AT_ONCE.search(answer) and _LONG_NUMBER.search(answer):
        return True
    for pattern, most in MAX_COUNTS.items():
        most = max(2, most // 4) if rational else most
        if len(re.findall(pattern, answer)) > max(most, 2 * len(re.findall(pattern, truth))):
            return True
    deepest = MAX_DEPTH_OF_NUMBERS if rational else MAX_DEPTH
    return _depth(answer) > max(deepest, _depth(truth) + 1)


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        last = bracket.group()[-1]
        depth += (last in "([{") - (last in ")]}")
        deepest = max(deepest, depth)
    return deepest
