r"""Arithmetic compared without algebra: what it decides is right, and what it cannot know it leaves alone."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")
from tests.hostile_latex import KINDS
from verl_s2d.rewards import mathematics
from verl_s2d.rewards.arithmetic import equals
from verl_s2d.rewards.mathematics import Options, judge
from verl_s2d.rewards.pool import shared

TOWER = "9^{9^{9^{9}}}"


@pytest.mark.parametrize(
    ("text", "number", "decision"),
    [
        ("2^{10} - 24", "1000", True),
        (r"\frac{3+4}{2}", "7/2", True),
        (r"\frac{\frac{1}{2}}{\frac{3}{4}}", "2/3", True),
        (r"3 \cdot 4 \div 6 / 2", "1", True),
        (r"5 \times 10^{-3}", "1/200", True),
        ("-2^2", "-4", True),
        ("(-2)^{2}", "4", True),
        ("(-1)^{99^{9}}", "-1", True),
        ("1^{-9^{99}}", "1", True),
        ("0^{3}", "0", True),
        ("(3)(4)", "12", True),
        ("(3)(4)", "7", False),
        ("2(3!)", "12", True),
        (r"\sqrt{\frac{16}{9}}", "4/3", True),
        (r"\binom{10}{3}", "120", True),
        (r"\frac{300!}{299!}", "300", None),
        (r"\frac{20!}{19!}", "20", True),
        (r"2\pi", "6", False),
        ("e^{3}", "20", False),
        (r"\sqrt{2}", "1.4142135623730950488", None),
        ("0.333333*1", "1/3", None),
        ("0.33333*1", "1/3", False),
        ("x^2 - 1", "5", False),
        ("x_1 + 5", "5", False),
        ("x + 5 - x", "5", None),
        (r"5x^{0}", "5", None),
        (TOWER, "7", False),
        (f"-{TOWER}", "7", False),
        (f"9^{{-{TOWER}}}", "1", False),
        (f"9^{{-{TOWER}}}", "0", None),
        (f"{TOWER} - {TOWER} + 7", "7", None),
        (rf"\frac{{{TOWER}}}{{{TOWER}}}", "1", None),
        ("(9^{9})!", "7", False),
        ("(0.5)!", "7", False),
        ("(0.5)!", "1", None),
        (r"\binom{1000000}{500000}", "7", False),
        # Of two readings, of no real value, or no arithmetic.
        *(
            (text, "7", None)
            for text in ("3 1/2", "3(", r"3\frac{1}{2}", "6/2(3)", "1/2x", "2^10", "2^2^2", "3!!", "2^{3}!")
        ),
        *(
            (text, "7", None)
            for text in ("f(3)", "x(3)", "0^{0}", "0^{-1}", "1/0", r"\frac{1}{2-2}", "(-3)!", r"\sqrt{-1}")
        ),
        *(
            (text, "7", None)
            for text in ("(-8)^{1/3}", "i^{2}+8", "7%", "5 km", "m+n = 7", "", "1.2.3", ".5", "|7|", "٣+4")
        ),
        # Words and lists.
        ("answer answer", "7", False),
        ("__import__('os')", "7", False),
        ("ii", "-1", None),
        ("e", "1", False),
        ("(6, 31, -1)", "6", False),
        ("7, 7", "7", None),
        (r"\{7, 8\}", "7", False),
        (r"\max(3, 7)", "7", None),
        ("1,000 + 1", "1001", None),
    ],
)
def test_decisions(text, number, decision):
    assert equals(text, Fraction(number)) is decision


@st.composite
def expressions(draw, depth=3):
    """(TeX, its exact value, whether it is a sum, a product or an atom)."""
    kind = draw(
        st.sampled_from(["number"] if depth == 0 else ["number", "sum", "product", "frac", "power", "root", "letter"])
    )
    if kind == "number":
        number = draw(st.integers(0, 12))
        decimal = draw(st.booleans())
        return (f"{number}.25", number + Fraction(1, 4), "atom") if decimal else (str(number), Fraction(number), "atom")
    (first, a, of), (second, b, by) = draw(expressions(depth - 1)), draw(expressions(depth - 1))

    def within(text: str, shape: str, *allowed: str) -> str:
        return text if shape in allowed else f"({text})"

    if kind == "letter":
        # Zero and one, whatever the letter's value.
        letter = draw(st.sampled_from("xyn"))
        return (f"{within(first, of, 'atom')}+{letter}-{letter}", a, "sum")
    if kind == "sum":
        sign = draw(st.sampled_from("+-"))
        return (f"{first} {sign} {within(second, by, 'atom', 'product')}", a + b if sign == "+" else a - b, "sum")
    if kind == "product":
        sign = draw(st.sampled_from([r"\cdot ", "*", r" \times ", "/", ""] if b else [r"\cdot ", "*"]))
        if not sign:
            return (f"({first})({second})", a * b, "product")
        text = f"{within(first, of, 'atom', 'product')}{sign}{within(second, by, 'atom')}"
        return (text, a / b if sign == "/" else a * b, "product")
    if kind == "frac":
        return (rf"\frac{{{first}}}{{{second}}}", a / b, "atom") if b else (first, a, of)
    if kind == "root":
        return (rf"\sqrt{{({first})^{{2}}}}", abs(a), "atom")
    exponent = draw(st.integers(-4, 6))
    if not a and exponent <= 0:
        return (first, a, of)
    return (f"({first})^{{{exponent}}}", a**exponent, "atom")


@settings(max_examples=600, deadline=None)
@given(expressions(), st.fractions(max_denominator=50), st.booleans())
def test_never_wrong_about_exact_values(expression, other, same):
    text, value, _ = expression
    number = value if same else other
    assert equals(text, number) in ((True, None) if number == value else (False, None))


@settings(max_examples=300, deadline=None)
@given(
    expressions(), st.sampled_from([r"\pi", "e", r"\sqrt{2}", "9^{99}", "200!", r"\binom{90}{45}", "7^{0.3}", "(2.5)!"])
)
def test_intervals_contain_the_value(expression, large):
    """What is put in and taken out again must not refute, however much larger or rounded it was."""
    text, value, _ = expression
    assert equals(f"{large} + ({text}) - {large}", value) in (True, None)
    assert equals(rf"\frac{{({large})({text})}}{{{large}}}", value) in (True, None)
    assert equals(f"({large})^{{0.5}}({large})^{{0.5}} + ({text}) - ({large})", value) in (True, None)


def test_algebra_agrees(monkeypatch):
    decided = []

    def recorded(text: str, number: Fraction) -> bool | None:
        decision = equals(text, number)
        if decision is not None:
            decided.append((text, str(number), decision))
        return decision

    monkeypatch.setattr(mathematics.arithmetic, "equals", recorded)
    r = random.Random(0)
    for kind in ("tower", "bomb", "mutated", "code"):
        for _ in range(70):
            judge(KINDS[kind](r), str(r.randint(0, 30)), Options(seconds=20))
    assert len(decided) > 50
    outcomes = [(shared().compare(number, text, 20.0) == "equal") == decision for text, number, decision in decided]
    assert all(outcomes), [case for case, fine in zip(decided, outcomes, strict=True) if not fine]


def test_large_values_cost_nothing():
    started = time.process_time()
    for text in (TOWER, f"({TOWER})!", f"{TOWER}/{TOWER}", f"(({TOWER})^{{99}})^{{99}}", "((99!)!)!", "9" * 400 + "!"):
        assert equals(text, Fraction(7)) is not True
    assert time.process_time() - started < 0.5
