r"""Decide whether two answers are equivalent. Runs in a process that may be killed at any time.

An answer is read from the outside in: a list or tuple by its items, an equation by its sides, a set of numbers as a
set, and formulas, which math-verify's parser reads, by their values (values.py). math-verify's own comparison is not
used: it rounds to six decimals, takes the last side of any equation, and holds equations without solutions for equal.
"""

from __future__ import annotations

import logging
import re

import sympy

from verl_s2d.verifiers.math import numerals
from verl_s2d.verifiers.math.compare_forms import same_form
from verl_s2d.verifiers.math.formulas import parse
from verl_s2d.verifiers.math.normal_form import normal_form
from verl_s2d.verifiers.math.regions import is_region, same_region
from verl_s2d.verifiers.math.structure import AnswerList, Chain, chain, collection, enclosed, ratio
from verl_s2d.verifiers.math.values import decimal_stands_for, proportional, same_value

# The parser reports every text that it cannot read.
logging.disable(logging.CRITICAL)

_SUBSCRIPT = r"(?:_\{[^{}=]*(?:\{[^{}=]*\}[^{}=]*)?\})?"
_LETTER = (
    r"(?:[A-Za-z]|[A-Z]{2,4}|[A-Za-z][a-z]{3,}(?:\s[A-Za-z]+)*|\\text\{[^{}]*\}|\\operatorname\{[A-Za-z]+\}"
    r"|\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi"
    r"|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell)(?![A-Za-z])"
    r"|m?\s*\\(?:angle|triangle)\s*[A-Z]{1,4}|\\(?:overline|vec|hat|bar|tilde)\{\s*[A-Za-z]{1,3}\s*\}"
    r"|\|[A-Z]{2}\||\[[A-Z]{3,4}\])"
)
_NAME = re.compile(
    rf"\s*{_LETTER}{_SUBSCRIPT}'*(?:\^\{{\s*(?:\*|\\ast|\\prime|-1)\s*\}})?\s*(?:\(\s*[A-Za-z0-9]+(?:\s*,\s*[A-Za-z0-9]+)*\s*\))?\s*"
    r"|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)"
)
"""x, f(x), m_{\\max}, AB, \\angle ABC, (x,y): what an equation may give a value to. 2x, -x, xy and x^{2} are none."""


def agree(truth: str, answer: str) -> bool:
    """Tell whether `answer` is equivalent to `truth`, both TeX without dollar signs. Unparsable text is not."""
    truth, answer = _bare(truth), _bare(answer)
    several = collection(truth), collection(answer)
    chains = [chain(text) if items is None else None for text, items in zip((truth, answer), several, strict=True)]
    if all(several):
        if _same_items(*several):
            return True
    elif any(chains):
        if _same_relations(*chains, truth, answer):
            return True
    elif not any(several) and not (is_region(truth) and is_region(answer)):
        return _same_formula(truth, answer)
    return (is_region(truth) or is_region(answer)) and same_region(truth, answer)


def warm_up() -> None:
    """Pay for lazy imports and the parser's tables once, before the process is forked."""
    pairs = [
        (r"\frac{1}{2}", "0.5"),
        (r"\sqrt{8}+\pi", r"2\sqrt{2}+\pi"),
        (r"\frac{\pi^{2}}{8}", "1.2337005"),
        (r"(-\infty, 2) \cup (3, \infty)", r"x<2 \lor x>3"),
        (r"x^{8} - 2x + 1", "(x^{7}-2)x+1"),
        (r"\begin{pmatrix} 1/5 & -1 \\ 2 & 3\end{pmatrix}", r"\begin{pmatrix} 0.2 & -1 \\ 2 & 3\end{pmatrix}"),
        (r"\sin x + \cot x + e^{i}", r"\cot x + \sin x + e^{i}"),
        (r"1 \pm \sqrt{3}", r"1+\sqrt{3}, 1-\sqrt{3}"),
        (r"x + 2y = 3", "2x+4y=6"),
        (r"x \in [-2,7]", r"-2 \le x \le 7"),
        (r"5!", r"\binom{6}{3} \log_{2} 64"),
        (r"|x|", r"\lfloor x \rfloor"),
    ]
    for truth, answer in pairs:
        agree(truth, answer)


def _bare(text: str) -> str:
    """Strip space, and parentheses or braces around a single formula."""
    text = text.strip()
    while (outer := enclosed(text)) is not None and outer[0] in ("()", r"\{\}") and outer[1]:
        items = collection(text)
        if items is not None and len(items.items) > 1:
            break
        text = outer[1]
    return text


def _same(truth: str, answer: str) -> bool:
    """Compare parts of answers as answers of their own."""
    first, second = normal_form(truth), normal_form(answer)
    decided = same_form(first, second)
    if decided is not None:
        return decided[0]
    if first.percent != second.percent:
        return agree(*(rf"\frac{{{side.text}}}{{100}}" if side.percent else side.text for side in (first, second)))
    return agree(first.text, second.text) if first.text and second.text else False


def _same_items(truth: AnswerList, answer: AnswerList) -> bool:
    """Compare lists and sets in any order, tuples in theirs; a list may also be written as a tuple in its order."""
    if len(truth.items) != len(answer.items):
        return False
    unordered = ("", r"\{\}")
    names = [name for item in truth.items if (relation := chain(item)) and (name := _name(relation))]
    if truth.brackets in unordered and answer.brackets in unordered:
        # Values alone, for several unknowns, stand in the order of the unknowns.
        if len(set(names)) < 2 or any(chain(item) for item in answer.items):
            return _matched(list(truth.items), list(answer.items))
    elif truth.brackets != answer.brackets and {truth.brackets, answer.brackets} != {"", "()"}:
        return False
    return all(map(_same, truth.items, answer.items))


def _matched(truths: list[str], answers: list[str]) -> bool:
    for answer in answers:
        found = next((truth for truth in truths if truth == answer), None)
        found = found or next((truth for truth in truths if _same(truth, answer)), None)
        if found is None:
            return False
        truths.remove(found)
    return True


def _same_relations(truth: Chain | None, answer: Chain | None, whole_truth: str, whole_answer: str) -> bool:
    """Compare relations; of `x = 5` and `5` only the values are compared, if one of the two is no relation."""
    if truth is None or answer is None:
        values = whole_truth if truth is None else _value(truth), whole_answer if answer is None else _value(answer)
        return None not in values and _same(*values)
    if truth.is_equation and answer.is_equation:
        return _same_equations(_reduced(truth), _reduced(answer))
    if truth.is_equation != answer.is_equation:
        # One gives a set to a name, x \in (1,2), the other describes it, 1 < x < 2.
        truths = _value(truth) if truth.is_equation else whole_truth
        answers = _value(answer) if answer.is_equation else whole_answer
        return truths is not None and answers is not None and same_region(truths, answers)
    if len(truth.relations) != len(answer.relations):
        return False
    pairs = _pairs(answer)
    for pair in _pairs(truth):
        match = next((other for other in pairs if _same_inequality(pair, other)), None)
        if match is None:
            return False
        pairs.remove(match)
    return True


def _name(relations: Chain) -> str | None:
    r"""Return what the first side names: x of `x = ...` and of `x \in ...`."""
    return relations.sides[0] if relations.is_equation and _NAME.fullmatch(relations.sides[0]) else None


def _value(relations: Chain) -> str | None:
    """Return the value of an equation whose sides, but for a name on one of them, all agree."""
    if not relations.is_equation:
        return None
    values = list(relations.sides)
    named = [side for side in (values[0], values[-1]) if _NAME.fullmatch(side)]
    if named:
        values.remove(named[0])
    return values[-1] if all(_same(values[-1], value) for value in values[:-1]) else None


def _reduced(relations: Chain) -> Chain:
    """Shorten `x = 10/2 = 5` to `x = 5`."""
    value = _value(relations) if len(relations.sides) > 2 else None
    return Chain((relations.sides[0], value), ("=",)) if value is not None else relations


def _same_equations(truth: Chain, answer: Chain) -> bool:
    if len(truth.sides) != len(answer.sides):
        return False
    if _matched(list(truth.sides), list(answer.sides)):
        return True
    if len(truth.sides) != 2:
        return False
    first, second = _difference(truth.sides), _difference(answer.sides)
    if first is None or second is None:
        return False
    if proportional(first, second):
        return True
    # y = 1/x is xy = 1.
    tops = [sympy.fraction(sympy.together(side))[0] for side in (first, second)]
    return tops != [first, second] and bool(proportional(*tops))


def _pairs(relations: Chain) -> list[tuple[str, str, str]]:
    """List inequalities as (smaller side, relation, larger side)."""
    pairs = zip(relations.sides[:-1], relations.relations, relations.sides[1:], strict=True)
    return [(b, "<" + r[1:], a) if r.startswith(">") else (a, r, b) for a, r, b in pairs]


def _same_inequality(truth: tuple[str, str, str], answer: tuple[str, str, str]) -> bool:
    if truth[1] != answer[1]:
        return False
    first, second = _difference(truth[::2]), _difference(answer[::2])
    if first is None or second is None:
        return _same(truth[0], answer[0]) and _same(truth[2], answer[2])
    sign = proportional(first, second)
    return sign > 0 or (sign != 0 and truth[1] in ("=", "!="))


def _difference(sides: tuple[str, ...]) -> sympy.Expr | None:
    formulas = [parse(normal_form(side).text) for side in sides]
    return formulas[0] - formulas[1] if all(isinstance(formula, sympy.Expr) for formula in formulas) else None


def _same_formula(truth: str, answer: str) -> bool:
    ratios = ratio(truth), ratio(answer)
    if any(ratios):
        return all(ratios) and len(ratios[0]) == len(ratios[1]) and _same_ratio(*ratios)
    gold, found = parse(truth), parse(answer)
    if gold is None or found is None:
        return False
    for side, other in ((truth, found), (answer, gold)):
        if numerals.value(side)[1] and isinstance(other, sympy.Expr) and not other.is_Rational:
            return decimal_stands_for(side, other)
    return same_value(gold, found)


def _same_ratio(truth: tuple[str, ...], answer: tuple[str, ...]) -> bool:
    gold, found = [parse(part) for part in truth], [parse(part) for part in answer]
    if not all(isinstance(part, sympy.Expr) and part != 0 for part in gold + found):
        return False
    return all(same_value(g * found[0], f * gold[0]) for g, f in zip(gold, found, strict=True))
