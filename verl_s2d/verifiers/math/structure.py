r"""Split an answer's text into its parts: lists, tuples, sets, plus or minus, ratios and chains of relations.

The parser behind reads single formulas; what stands between formulas is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\\begin\{[a-z]*\}|\\end\{[a-z]*\}|\\[A-Za-z]+|\\.|.", re.DOTALL)
_OPENING = {"(", "[", "{", r"\{", r"\langle"}
_CLOSING = {")", "]", "}", r"\}", r"\rangle"}
_RELATIONS = {
    **{"=": "=", r"\in": "=", r"\approx": "=", r"\equiv": "=", r"\ne": "!=", "<": "<", ">": ">"},
    **{r"\le": "<=", r"\ge": ">="},
}
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_PAIRS = {("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), (r"\{", r"\}"), (r"\langle", r"\rangle")}


@dataclass(frozen=True)
class AnswerList:
    r"""Several answers in one: `brackets` is "()", "[)", r"\{\}" and so on, or "" for a plain list."""

    brackets: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """Sides with relations between them: 1 < x <= 2 has three sides. Relations are =, !=, <, <=, > and >=."""

    sides: tuple[str, ...]
    relations: tuple[str, ...]

    @property
    def is_equation(self) -> bool:
        return set(self.relations) == {"="}


def collection(text: str) -> AnswerList | None:
    """Read a list, a tuple, a set or an interval; None for a single formula. Plus or minus makes two answers of one."""
    parts, _ = split(text, {";"})
    if len(parts) == 1:
        parts, _ = split(text, {","})
    if len(parts) > 1:
        return AnswerList("", tuple(sign for part in parts if part for sign in both_signs(part)))
    outer = enclosed(text)
    if len(signs := both_signs(text)) > 1 and (outer is None or outer[0] != r"\{\}"):
        return AnswerList("", tuple(signs))
    if outer is None:
        return None
    brackets, inner = outer
    within = collection(inner)
    if within is not None and not within.brackets:
        return AnswerList(brackets, within.items)
    return AnswerList(brackets, (inner,)) if brackets == r"\{\}" and inner else None


def enclosed(text: str) -> tuple[str, str] | None:
    """Split a text that one pair of brackets encloses into (the brackets, what they hold)."""
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or (tokens[0], tokens[-1]) not in _PAIRS:
        return None
    depth = 0
    for token in tokens[:-1]:
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0:
            return None
    return tokens[0] + tokens[-1], "".join(tokens[1:-1]).strip()


def both_signs(text: str) -> list[str]:
    r"""Write a text with \pm and \mp once with the upper and once with the lower signs."""
    if not _SIGNS.search(text):
        return [text]
    upper, lower = {"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"}
    return [_SIGNS.sub(lambda m, signs=signs: signs[m.group(1)], text) for signs in (upper, lower)]


def chain(text: str) -> Chain | None:
    """Read equations and inequalities; None without a relation, or with a side that is empty."""
    sides, found = split(text, set(_RELATIONS))
    if not found or not all(sides):
        return None
    return Chain(tuple(sides), tuple(_RELATIONS[token] for token in found))


def ratio(text: str) -> tuple[str, ...] | None:
    """Read a ratio of three or more: 3:4:5. One of two is a quotient."""
    parts, _ = split(text, {":"})
    return tuple(parts) if len(parts) > 2 and all(parts) else None


def split(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """Split at separators outside of all brackets: (stripped parts, the separators between them)."""
    parts, found, depth = [""], [], 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPENING or token.startswith(r"\begin{")) - (token in _CLOSING or token.startswith(r"\end{"))
        if depth == 0 and token in separators:
            found.append(token)
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts], found
