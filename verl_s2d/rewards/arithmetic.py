r"""Arithmetic written in TeX, compared with a number without algebra: 99^{9^{9}} is not 7, and 2^{10} - 24 is 1000.

    sum      = [sign] product {sign product}
    product  = power {[\cdot, \times, *, /, \div] power}
    power    = atom [!] [^ exponent]
    atom     = digits, digits.digits, e, \pi, a letter, (sum), \frac{}{}, \binom{}{}, \sqrt{}, \sqrt[digits]{}

Values are fractions while they are small, and otherwise intervals that contain them, so that towers of exponents cost
nothing. A letter stands for some number: a formula that equals the truth whatever its letters are does so there, too.
What could be read in two ways (3 1/2, 6/2(3), 2^10, f(x)), or has no real value, is left undecided.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath import iv

MAX_BITS = 4096
"""Of a numerator or denominator that is kept exactly."""

_TOLERANCE = Fraction(4, 1_000_000)
"""Relative. What is nearer may be a rounded decimal, and is left to the comparison that knows how many digits count."""
_TOKEN = re.compile(r" *(?:([0-9]+(?:\.[0-9]+)?)|[a-z](?:_(?:[0-9a-z]|\{[0-9a-z]+\}))?|\\[a-z]+|[-+*/^!(){}\[\]])")
# Without d and i, which may be more than a letter, and those that may be a unit or a function.
_LETTERS = {name: iv.mpf(137 + 7 * number) / 191 for number, name in enumerate("abknpquvwxyz")}
_CONSTANTS = {"e": iv.exp(1), r"\pi": +iv.pi, **_LETTERS}
_GROUPED = ("(", r"\frac", r"\binom", r"\sqrt")
_WORDS = re.compile(r"(?!.*sqrt)[EIei_ '\"(){}.,]*[A-DF-HJ-Za-df-hj-z][A-Za-z_ '\"(){}.,]*")
"""Words, and products of letters not all of which are e or i: no digit, operator or command."""
_BRACKETS = re.compile(r"^ *\\?[(\[{]|\\?[)\]}] *$")
_GROUPED_DIGITS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
_LARGEST_LOGARITHM = iv.mpf(MAX_BITS)
"""Beyond it a value is only known to be large. No truth is: a screen turns down numbers of more than 400 digits."""

Value = Any
"""A Fraction, or an interval of mpmath's, for which mpmath has no public name."""


class _Undecided(Exception):
    """The text is no arithmetic, or may be read in two ways, or its value is not known to be real."""


def equals(text: str, number: Fraction) -> bool | None:
    """Whether the arithmetic in `text` has the value `number`; None when that is not decided here.

    Args:
        text: an answer's normal form (normal_form.py). Its nesting is bounded by the caller, as Python's recursion is.
    """
    if _WORDS.fullmatch(text):
        return False
    members = _BRACKETS.sub("", text).split(",")
    if len(members) > 1 and not _GROUPED_DIGITS.search(text):
        # A list is no number, unless it names one number several times.
        each = [equals(member, number) for member in members]
        return None if None in each or all(each) else False
    try:
        value = _Reader(text).value()
    except _Undecided:
        return None
    if isinstance(value, Fraction) and value == number:
        return True
    value, near = _interval(value), _interval(number) + _interval(abs(number) * _TOLERANCE) * iv.mpf([-1, 1])
    return False if value < near or value > near else None


class _Reader:
    """A text's tokens, read once from left to right."""

    def __init__(self, text: str) -> None:
        written = [token.group().lstrip() for token in _TOKEN.finditer(text)]
        if "".join(written) != text.replace(" ", ""):
            raise _Undecided
        # A letter with an index takes the letter's value: one value does as well as another.
        self._tokens = [*(token.partition("_")[0] for token in written), ""]
        self._at = 0

    def value(self) -> Value:
        value = self._sum()
        if self._next:
            raise _Undecided
        return value

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self, *expected: str) -> str:
        token = self._next
        if expected and token not in expected:
            raise _Undecided
        self._at += 1
        return token

    def _sum(self) -> Value:
        negative = self._next in ("+", "-") and self._take() == "-"
        total = self._product()
        total = -total if negative else total
        while self._next in ("+", "-"):
            negative = self._take() == "-"
            term = self._product()
            total = _plus(total, -term if negative else term)
        return total

    def _product(self) -> Value:
        product, divided = self._power(), False
        while self._next in _CONSTANTS or self._next in ("*", r"\cdot", r"\times", "/", r"\div", *_GROUPED):
            before, after = self._tokens[self._at - 1], self._next
            if after in _CONSTANTS or after in _GROUPED:
                word = before in _CONSTANTS and (after == "(" or (before.isalpha() and after.isalpha()))
                mixed = before[-1].isdigit() and after == r"\frac"
                if divided or word or mixed:
                    raise _Undecided
                product = _times(product, self._power())
            else:
                divided = self._take() in ("/", r"\div")
                factor = self._power()
                product = _times(product, _raised(factor, Fraction(-1)) if divided else factor)
        return product

    def _power(self) -> Value:
        value = self._atom()
        if self._next == "!":
            # (2x)!, but not 2^{3}!, and x! only where it cannot be taken for (2x)!.
            if self._tokens[self._at - 1] != ")" and not self._tokens[self._at - 1].isdigit():
                raise _Undecided
            self._take()
            value = _factorial(value)
            if self._next in ("!", "^"):
                raise _Undecided
        if self._next == "^":
            self._take()
            value = _raised(value, self._exponent())
            if self._next in ("!", "^"):
                raise _Undecided
        return value

    def _exponent(self) -> Value:
        if self._next == "{":
            return self._group()
        # Of 2^10 TeX prints 2^{1}0.
        if (len(self._next) == 1 and self._next.isdigit()) or self._next in _CONSTANTS:
            return self._atom()
        raise _Undecided

    def _group(self, opening: str = "{", closing: str = "}") -> Value:
        self._take(opening)
        value = self._sum()
        self._take(closing)
        return value

    def _atom(self) -> Value:
        token = self._next
        if token == "(":
            return self._group("(", ")")
        self._take()
        if token[:1].isdigit():
            return Fraction(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token == r"\frac":
            return _times(self._group(), _raised(self._group(), Fraction(-1)))
        if token == r"\binom":
            return _binomial(self._group(), self._group())
        if token == r"\sqrt":
            degree = self._group("[", "]") if self._next == "[" else Fraction(2)
            return _root(self._group(), degree)
        raise _Undecided


def _interval(value: Value) -> Value:
    return iv.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _combined(first: Value, second: Value, operation: Callable[[Value, Value], Value]) -> Value:
    """Exactly for two fractions, as long as the result is small."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        result = operation(first, second)
        return result if _bits(result) <= MAX_BITS else _interval(result)
    return operation(_interval(first), _interval(second))


def _plus(first: Value, second: Value) -> Value:
    return _combined(first, second, lambda a, b: a + b)


def _times(first: Value, second: Value) -> Value:
    return _combined(first, second, lambda a, b: a * b)


def _exponential(logarithm: Value) -> Value:
    """e to the power of an interval, of any size."""
    most = _LARGEST_LOGARITHM
    inner = iv.exp(iv.mpf([min(max(logarithm.a, -most), most), max(min(logarithm.b, most), -most)]))
    return iv.mpf([0 if logarithm.a < -most else inner.a, "inf" if logarithm.b > most else inner.b])


def _raised(base: Value, exponent: Value) -> Value:
    whole = isinstance(exponent, Fraction) and exponent.denominator == 1
    if isinstance(base, Fraction) and whole:
        if base in (0, 1, -1):
            if base == 0 and exponent <= 0:
                raise _Undecided
            return base ** (exponent.numerator % 2 or 2)
        if _bits(base) * abs(exponent) <= MAX_BITS:
            return base**exponent.numerator
    base, negative = _interval(base), False
    if base < 0 and whole:
        base, negative = -base, exponent.numerator % 2 == 1
    if not base > 0:
        raise _Undecided
    size = _exponential(iv.log(base) * _interval(exponent))
    return -size if negative else size


def _root(base: Value, degree: Value) -> Value:
    if not (isinstance(degree, Fraction) and degree.denominator == 1 and degree > 1):
        raise _Undecided
    if isinstance(base, Fraction) and base >= 0 and degree == 2:
        root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
        if root * root == base:
            return root
    return _raised(base, 1 / degree)


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= MAX_BITS // 16:
        return Fraction(math.factorial(value.numerator))
    value = _interval(value)
    if not value > 0:
        raise _Undecided
    if value < 2:
        # Its minimum is at 0.46.
        return iv.mpf([0.885, 2])
    # Stirling's series, whose error is less than its next term.
    logarithm = value * (iv.log(value) - 1) + iv.log(2 * iv.pi * value) / 2
    return _exponential(logarithm + iv.mpf([0, 1]) / (12 * value))


def _binomial(whole: Value, part: Value) -> Value:
    if not all(isinstance(n, Fraction) and n.denominator == 1 for n in (whole, part)) or not 0 <= part <= whole:
        raise _Undecided
    part = min(part, whole - part)
    if _bits(whole) * part <= MAX_BITS:
        return Fraction(math.comb(whole.numerator, part.numerator))
    # (n/k)^k is at most n over k, and n^k at least.
    least, most = (_exponential(_interval(part) * iv.log(_interval(n))) for n in (whole / part, whole))
    return iv.mpf([least.a, most.b])
