r"""What is turned down unread: text that is no final answer, judged by what it would take to parse and evaluate it.

The parser's time grows with the power of some kinds of nesting, and sympy's without bound. All limits are far from what
the ground truths of MATH-500 need, and a ground truth that needs more raises them.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 400
"""Of an answer. The longest ground truth of MATH-500 has 159."""
MAX_DEPTH = 7
"""Nested brackets of any kind."""
MAX_DEPTH_OF_NUMBERS = 3
MAX_DIGITS = 400
"""In a row, in a formula; plain integers of any length are compared as text."""
MAX_COUNTS = {
    **{r"\^": 24, r"_": 16, r"/": 16, r"=": 5, r"!": 2, r"\|": 8, r"\\sqrt": 12},
    **{r"\\cup": 8, r"\\pm|\\mp": 3, r"\\sin|\\cos|\\tan": 8},
    r"(?<![\\A-Za-z])[A-Za-z]+": 64,
}
"""Of what is costly in numbers; a quarter of it when the ground truth is a rational number."""

_LEFT_UNDONE = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf|operatorname|det|gcd|lcm|mod|bmod|pmod)(?![A-Za-z])"
    r"|\\(?:Gamma|gamma)\s*[({]|\\begin\{[vV]matrix\}|\\frac\s*\{\s*(?:d|\\partial)\s*\}\s*\{\s*(?:d|\\partial)"
)
"""An answer that names the work instead of doing it counts when the ground truth does, too."""
_CHAINS = re.compile(r"(?:[-+]\s*){4}|(?:/\s*[\w.]+\s*){4}|(?:[\^_]\s*[A-Za-z0-9.]+\s*){4}|(?:\\text\{[^{}]*\}\W*){4}")
_NO_NUMBER = re.compile(r"\\(?:cup|cap|setminus|infty|emptyset|mathbb|begin|end)(?![A-Za-z])")
"""Sets, matrices and infinity."""
_EVALUATED_AT_ONCE = re.compile(r"\\binom|!")
_LONG_NUMBER = re.compile(r"\d{5,}")
_BRACKETS = re.compile(r"\\.|[()\[\]{}]", re.DOTALL)
_FREE_CONTROLS = "\n\t\r"


def is_too_long(answer: str, truth: str) -> bool:
    """Whether an answer has more characters than any that could be right."""
    return len(answer) > max(MAX_CHARACTERS, 3 * len(truth))


def is_unprintable(text: str) -> bool:
    """Whether there are surrogates, control or private characters in it: what a tokenizer makes of broken bytes."""
    odd = (unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") for c in set(text) if c not in _FREE_CONTROLS)
    return any(odd) or "\ufffd" in text


def is_too_complex(answer: str, truth: str, *, rational: bool = False) -> bool:
    """Whether a formula takes more than a final answer should, and more than the ground truth does.

    Args:
        rational: whether the ground truth is a rational number, which can be written in few ways.
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
