"""Read what the source says about the fields of a section: the text below a field, or its entry under `Attributes:`."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from verl_s2d.validation import Section

_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): ")


def field_notes(section: type[Section]) -> dict[str, str]:
    """Map field -> its description in one line, for the fields that have one; a subclass's text replaces its base's."""
    notes: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if issubclass(owner, Section):
            notes |= _of_docstring(owner) | dict(_below_fields(owner))
    names = {field.alias or name: name for name, field in section.model_fields.items()}
    return {name: text for key, name in names.items() if (text := notes.get(name) or notes.get(key))}


def summary(section: type[Section]) -> str:
    """Return a section's docstring up to its `Attributes:`, in one line for each paragraph."""
    text = (inspect.getdoc(section) or "").partition("Attributes:\n")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())


def _below_fields(owner: type[Section]) -> Iterator[tuple[str, str]]:
    body = _classes(owner.__module__).get(owner.__name__, [])
    for field, below in pairwise(body):
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
            yield field.target.id, " ".join(text.split())


def _of_docstring(owner: type[Section]) -> dict[str, str]:
    notes: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]).splitlines():
        if entry := _ENTRY.match(line):
            names = entry[1].split(", ")
            text = line[entry.end() :].strip()
            notes |= dict.fromkeys(names, text[:1].upper() + text[1:])
        elif line.startswith(" " * 8):
            notes |= {name: f"{notes[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return notes


@cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
