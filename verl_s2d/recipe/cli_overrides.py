"""Override keys of a recipe on the command line, as in hydra: `stages.opd.steps=50 seeds=[0,1]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.validation import join

_DOTTED = ("verl", "engine", "args")
"""Sections whose keys may contain dots: the rest of an override below them is one key."""


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
