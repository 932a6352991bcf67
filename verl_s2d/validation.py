"""Check settings with pydantic, and report every fault as a UserError with its dotted key, value and remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from verl_s2d.errors import UserError, together

T = TypeVar("T")

_SCALARS = ("str", "int", "float", "bool")


class Refused(UserError, ValueError):
    """A UserError for validators: pydantic collects ValueErrors, and `key` counts from the section being validated."""

    def __init__(self, problem: str, *, key: str = "", **told: Any):
        super().__init__(problem, key=key, **told)
        self._told = told

    def below(self, section: str) -> Refused:
        """Return the same fault, without those found with it, with its key counted from the root."""
        return Refused(self.problem, key=join(section, self.key or ""), **self._told)


class Section(BaseModel):
    """A frozen section of settings: no unknown keys, and no conversion of types other than int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def known_keys(cls) -> list[str]:
        """Return the keys a user may write in this section."""
        return _keys(cls)

    @classmethod
    def expanded(cls, data: Any) -> Any:
        """Write out the short forms in which a user may give this section."""
        return data

    @model_validator(mode="wrap")
    @classmethod
    def _no_unknown_keys(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        # In place of pydantic's own refusal, which does not name the nearest key; the other keys are still validated.
        data, keys = cls.expanded(data), _keys(cls)
        unknown = [name for name in data if name not in keys] if isinstance(data, Mapping) else []
        if not unknown:
            return handler(data)
        faults = [_unknown_key(name, data[name], cls.known_keys()) for name in unknown]
        try:
            handler({name: value for name, value in data.items() if name in keys})
        except ValidationError as error:
            faults += [_again(fault) for fault in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(cls.__name__, faults)


def validated(kind: type[T], data: Any, *, key: str = "", context: Any = None, strict: bool | None = None) -> T:
    """Validate `data` as a Section or dataclass.

    Args:
        key: dotted key of `data`, empty for the root.
        context: handed to the validators.
        strict: False converts text, as command lines give it.

    Raises:
        UserError: every fault (`also`). Inside a validator pydantic collects it, like every Refused.
    """
    try:
        return TypeAdapter(kind).validate_python(data, context=context, strict=strict)
    except ValidationError as error:
        raise together(_refusals(error, data, key)) from None


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


def _unknown_key(name: Any, value: Any, known: list[str]) -> InitErrorDetails:
    refused = Refused("Unknown key.", value=value, remedy=suggestion(name, known))
    return InitErrorDetails(type=_error("unknown_key", refused), loc=(str(name),), input=value)


def _again(fault: Mapping[str, Any]) -> InitErrorDetails:
    """Write a fault of an inner validation as one of the outer."""
    own = fault.get("ctx", {}).get("error")
    kind = _error(fault["type"], own) if isinstance(own, Exception) else fault["type"]
    return InitErrorDetails(type=kind, loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {}))


def _error(kind: str, error: Exception) -> PydanticCustomError:
    return PydanticCustomError(kind, "{error}", {"error": error})


def _refusals(error: ValidationError, data: Any, section: str) -> list[Refused]:
    """Return the faults of a validation, one for each key."""
    of_key: dict[str, list[Any]] = {}
    for fault in error.errors(include_url=False):
        of_key.setdefault(_key(fault, data, section), []).append(fault)
    # A value of a wrong type also fails in the sections that are its alternatives, at keys below its own.
    return [fault for key, faults in of_key.items() for fault in _refused(faults, key)]


def _refused(faults: Sequence[Mapping[str, Any]], key: str) -> list[Refused]:
    own = [e for e in (fault.get("ctx", {}).get("error") for fault in faults) if isinstance(e, Refused)]
    if own:
        return [fault.below(key) for error in own[:1] for fault in (error, *error.also)]
    if faults[0]["type"] == "missing":
        parent, _, name = key.rpartition(".")
        return [Refused("A required key is missing.", key=key, remedy=f"Add `{name}`{parent and f' below {parent}'}.")]
    # A value that may be of several types has a fault for each.
    told = [_told(fault) for fault in faults]
    remedy = " Or: ".join(dict.fromkeys(remedy for _, remedy in told))
    return [Refused(told[0][0], key=key or "recipe", value=faults[0]["input"], remedy=remedy)]


def _told(fault: Mapping[str, Any]) -> tuple[str, str]:
    """Return problem and remedy of one of pydantic's faults."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "greater_than_equal":
        return "The value is too small.", f"At least {context['ge']:g}."
    if kind == "greater_than":
        return "The value is too small.", f"More than {context['gt']:g}."
    if kind == "less_than":
        return "The value is too large.", f"Less than {context['lt']:g}."
    if kind == "less_than_equal":
        return "The value is too large.", f"At most {context['le']:g}."
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
