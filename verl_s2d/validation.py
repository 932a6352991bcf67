"""Check settings with pydantic, and report the first fault as a UserError with its dotted key, value and remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from verl_s2d.errors import UserError

T = TypeVar("T")

_SCALARS = ("str", "int", "float", "bool")


class Refused(UserError, ValueError):
    """A UserError for validators: pydantic collects ValueErrors, and `key` counts from the section being validated."""

    def __init__(self, problem: str, *, key: str = "", **told: Any):
        super().__init__(problem, key=key, **told)
        self._told = told

    def below(self, section: str) -> Refused:
        """Return the same error with its key counted from the root."""
        return Refused(self.problem, key=join(section, self.key or ""), **self._told)


class Section(BaseModel):
    """A frozen section of settings: no unknown keys, and no conversion of types other than int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def known_keys(cls) -> list[str]:
        """Return the keys a user may write in this section."""
        return _keys(cls)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        # Ahead of pydantic's own refusal, which does not name the nearest key.
        keys = _keys(cls)
        for name in data if isinstance(data, Mapping) else ():
            if name not in keys:
                raise Refused(
                    "Unknown key.", key=str(name), value=data[name], remedy=suggestion(name, cls.known_keys())
                )
        return data


def validated(kind: type[T], data: Any, *, key: str = "", context: Any = None, strict: bool | None = None) -> T:
    """Validate `data` as a Section or dataclass.

    Args:
        key: dotted key of `data`, empty for the root.
        context: handed to the validators.
        strict: False converts text, as command lines give it.

    Raises:
        UserError: the first fault. Inside a validator pydantic collects it, like every Refused.
    """
    try:
        return TypeAdapter(kind).validate_python(data, context=context, strict=strict)
    except ValidationError as error:
        raise _refused(error, data, key) from None


def json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Validate a mapping whose values cross a command line: refuse what JSON does not have, such as NaN.

    Raises:
        Refused: a value that would not keep its type.
    """
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise Refused(
                "The value cannot be written on a command line.",
                key=key,
                value=value,
                remedy="Use text, finite numbers, true, false, null, lists and mappings.",
            ) from None
    return values


def suggestion(word: Any, known: Iterable[str]) -> str:
    """Name the nearest known word, or list the known ones."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    if len(known) > 20:
        return "See the list of keys in verl's own configuration."
    return f"Known: {', '.join(known) or 'none'}."


def join(section: str, name: str) -> str:
    """Join two dotted keys, either of which may be empty; the index of a list is written `[i]`."""
    return f"{section}{name}" if not (section and name) or name.startswith("[") else f"{section}.{name}"


def _keys(section: type[Section]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _refused(error: ValidationError, data: Any, section: str) -> Refused:
    faults = error.errors(include_url=False)
    key = _key(faults[0], data, section)
    own = faults[0].get("ctx", {}).get("error")
    if isinstance(own, Refused):
        return own.below(key)
    if faults[0]["type"] == "missing":
        parent, _, name = key.rpartition(".")
        return Refused("A required key is missing.", key=key, remedy=f"Add `{name}`{parent and f' below {parent}'}.")
    # A value that may be of several types has a fault for each.
    told = [_told(fault) for fault in faults if _key(fault, data, section) == key]
    remedy = " Or: ".join(dict.fromkeys(remedy for _, remedy in told))
    return Refused(told[0][0], key=key or "recipe", value=faults[0]["input"], remedy=remedy)


def _told(fault: Mapping[str, Any]) -> tuple[str, str]:
    """Return problem and remedy of one of pydantic's faults."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "greater_than_equal":
        return "The value is too small.", f"At least {context['ge']:g}."
    if kind == "literal_error":
        return "Not one of the choices.", "One of " + context["expected"].replace("'", "").replace(" or ", ", ") + "."
    if kind in ("model_type", "dataclass_type"):
        return "A mapping is expected here.", "Write `key: value` lines."
    expected, _, rest = kind.partition("_")
    if rest in ("type", "parsing", "from_float"):
        expected = {"string": "str"}.get(expected, expected)
        return "The value has the wrong type.", f"A value of type {expected} is expected."
    return fault["msg"].rstrip(".") + ".", "Correct the value."


def _key(fault: Mapping[str, Any], data: Any, section: str) -> str:
    """Return the dotted key of a fault. pydantic's location also names members of unions, which are no keys."""
    key, place = section, fault["loc"]
    for i, name in enumerate(place):
        short_form = isinstance(data, str) and str(name).isidentifier() and name not in _SCALARS
        if isinstance(data, Mapping) and name in data:
            key, data = join(key, str(name)), data[name]
        elif isinstance(data, list) and isinstance(name, int):
            key, data = join(key, f"[{name}]"), data[name]
        elif short_form or (i == len(place) - 1 and fault["type"] == "missing"):
            key = join(key, str(name))
    return key
