r"""Read sets of real numbers, from intervals or from inequalities: (-\infty,2)\cup[3,5) and x<2 \lor 3\le x<5."""

from __future__ import annotations

import functools
import re

import sympy

from verl_s2d.verifiers.math.formulas import parse
from verl_s2d.verifiers.math.structure import Chain, chain, collection, enclosed, split
from verl_s2d.verifiers.math.values import same_value

_COMBINED = (
    ({r"\lor"}, sympy.Union),
    ({r"\land"}, sympy.Intersection),
    ({r"\setminus", "\\"}, sympy.Complement),
    ({r"\cup"}, sympy.Union),
    ({r"\cap"}, sympy.Intersection),
)
_NAMED = {
    **{r"\emptyset": sympy.S.EmptySet, r"\mathbb{R}": sympy.S.Reals, r"\mathbb{Z}": sympy.S.Integers},
    **{r"\mathbb{N}": sympy.S.Naturals, r"\mathbb{Q}": sympy.S.Rationals, r"\mathbb{C}": sympy.S.Complexes},
    r"\{\}": sympy.S.EmptySet,
}
_SIGNS = re.compile(r"\\(?:infty|cup|cap|setminus|emptyset|mathbb|lor|land)(?![A-Za-z])")
_COMPARED = {"<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge, "!=": sympy.Ne}


def is_region(text: str) -> bool:
    """Tell whether a text speaks of a set of numbers, and not of a pair or of an equation."""
    if _SIGNS.search(text):
        return True
    relations = chain(text)
    if relations is not None:
        return not relations.is_equation
    return (outer := enclosed(text)) is not None and outer[0] in ("(]", "[)", "[]") and collection(text) is not None


def same_region(truth: str, answer: str) -> bool:
    """Tell whether two texts describe the same set of real numbers, in the same variable if both name one."""
    if len({variable for text in (truth, answer) if (variable := _variable(text))}) > 1:
        return False
    gold, found = read(truth), read(answer)
    return gold is not None and found is not None and _same(gold, found)


def read(text: str) -> sympy.Set | None:
    """Read a set; None for a text that describes none, or conditions that nothing or everything fulfils."""
    try:
        return _read(text.strip())
    except (TypeError, ValueError, NotImplementedError, ArithmeticError, AttributeError, RecursionError):
        return None


def _read(text: str) -> sympy.Set | None:
    for separators, combine in _COMBINED:
        parts, found = split(text, separators)
        if found:
            sets = [read(part) for part in parts]
            return None if None in sets else functools.reduce(combine, sets)
    if (name := text.replace(" ", "")) in _NAMED:
        return _NAMED[name]
    if (relations := chain(text)) is not None:
        return _solutions(relations)
    if (outer := enclosed(text)) is None:
        return None
    brackets, inner = outer
    members = collection(text)
    if members is None:
        return read(inner)
    if brackets not in ("()", "(]", "[)", "[]", r"\{\}"):
        return None
    values = [parse(item) for item in members.items]
    if not all(isinstance(value, sympy.Expr) for value in values):
        return None
    if brackets == r"\{\}":
        return sympy.FiniteSet(*values)
    if len(values) != 2:
        return None
    interval = sympy.Interval(*values, brackets[0] == "(", brackets[1] == ")")
    # Numbers that fall are no interval, but a pair.
    return None if interval is sympy.S.EmptySet else interval


def _solutions(relations: Chain) -> sympy.Set | None:
    """Solve a chain of inequalities in one letter."""
    sides = [parse(side) for side in relations.sides]
    if not all(isinstance(side, sympy.Expr) for side in sides) or "=" in relations.relations:
        return None
    if len(set().union(*(side.free_symbols for side in sides))) != 1:
        return None
    steps = [_COMPARED[r](*sides[n : n + 2]) for n, r in enumerate(relations.relations)]
    solved = functools.reduce(sympy.Intersection, (step.as_set() for step in steps if step not in (True, False)))
    decided = solved in (sympy.S.EmptySet, sympy.S.Reals) or sympy.false in steps
    return None if decided else solved


def _variable(text: str) -> str | None:
    """Name the letter of the first condition in a text."""
    parts, _ = split(text, {r"\lor", r"\land"})
    relations = chain(parts[0])
    letters = [side for side in relations.sides if len(side.strip("\\")) == 1 and side.isalpha()] if relations else []
    return letters[0] if letters else None


def _same(gold: sympy.Set, found: sympy.Set) -> bool:
    if gold == found:
        return True
    parts = [list(s.args) if isinstance(s, sympy.Union) else [s] for s in (gold, found)]
    return len(parts[0]) == len(parts[1]) and all(any(_same_part(g, f) for f in parts[1]) for g in parts[0])


def _same_part(gold: sympy.Set, found: sympy.Set) -> bool:
    if isinstance(gold, sympy.Interval) and isinstance(found, sympy.Interval):
        return gold.args[2:] == found.args[2:] and all(map(_same_end, gold.args[:2], found.args[:2]))
    if isinstance(gold, sympy.FiniteSet) and isinstance(found, sympy.FiniteSet):
        return len(gold) == len(found) and all(any(same_value(a, b) for b in found) for a in gold)
    return gold == found


def _same_end(gold: sympy.Expr, found: sympy.Expr) -> bool:
    return gold == found or bool(gold.is_finite and found.is_finite and same_value(gold, found))
