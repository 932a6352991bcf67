"""Override keys of a recipe on the command line, as in hydra: `stages.opd.steps=50 seeds=[0,1]`; and read environment
variables, `${oc.env:NAME}` and `${oc.env:NAME,default}`, in values of a recipe and in overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.validation import join

_DOTTED = ("verl", "engine", "args")
"""Sections whose keys may contain dots: the rest of an override below them is one key."""
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,([^}]*))?\}")


def is_override(word: str) -> bool:
    """Tell `key=value` from other words of a command line, such as paths."""
    key, equals, _ = word.partition("=")
    return bool(equals) and key[:1].isalpha() and "/" not in key


def overridden(data: Any, overrides: Iterable[str], read: Callable[[str, str], Any]) -> Any:
    """Set the keys of a recipe that `overrides` name. Nothing of `data` is changed: yaml anchors share sections.

    Args:
        data: the recipe as yaml gives it.
        overrides: dotted `key=value`; of equal keys the last one counts.
        read: reads the yaml value of a key: (key, text) -> value.

    Raises:
        UserError: a word that is not an override, or a key below a value that is no section.
    """
    for word in overrides:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise UserError("Overrides are written key=value.", key=key, value=word, remedy="Write <key>=<value>.")
        data = _set(data, key, read(key, text), "")
    return data


def with_variables(data: Any, read: Callable[[str, str], Any], key: str = "") -> Any:
    """Fill in the environment variables that values name. One that is a whole value is read as yaml: 50 is a number.

    Args:
        data: the recipe as yaml gives it.
        read: reads the yaml value of a key: (key, text) -> value.
        key: dotted key of `data`, for messages.

    Raises:
        UserError: a variable is not set, and has no default.
    """
    if isinstance(data, Mapping):
        return {name: with_variables(value, read, join(key, str(name))) for name, value in data.items()}
    if isinstance(data, list):
        return [with_variables(value, read, join(key, f"[{i}]")) for i, value in enumerate(data)]
    if not isinstance(data, str) or "${oc.env:" not in data:
        return data

    def filled(match: re.Match[str]) -> str:
        name, default = match.groups()
        value = os.environ.get(name, default)
        if value is None:
            remedy = f"Set {name}, or write ${{oc.env:{name},default}}."
            raise UserError("The environment variable is not set.", key=key, value=data, remedy=remedy)
        return value

    text = _VARIABLE.sub(filled, data)
    return read(key, text) if _VARIABLE.fullmatch(data) else text


def _set(section: Any, key: str, value: Any, above: str) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise UserError(
            f"There are no keys below {above}: it has a value.",
            key=join(above, key),
            value=section,
            remedy=f"Override it as a whole: {above}={{{key}: ...}}.",
        )
    name, dot, rest = key.partition(".")
    if key in section or not dot or above.rpartition(".")[2] in _DOTTED:
        return {**section, key: value}
    below = section.get(name)
    return {**section, name: _set({} if below is None else below, rest, value, join(above, name))}
