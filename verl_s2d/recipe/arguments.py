"""`key=value` command lines of this project's modules and recipe scripts, read into a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from verl_s2d.errors import UserError

T = TypeVar("T")


def parse(arguments: Iterable[str], options: type[T]) -> T:
    """Fill the dataclass `options` from `key=value` arguments; `--key value` is read as `key=value`.

    Fields are str, int, float or bool (`| None` takes `null`). A `dict[str, ...]` field `f` collects `f.name=value`;
    with `Any` as its value type, values are read as JSON where they are JSON and as text where not.

    Raises:
        UserError: an unknown, repeated or missing key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(options)
    fields = {f.name: f for f in dataclasses.fields(options)}
    given: dict[str, Any] = {}
    for key, value in _pairs(arguments):
        name, dot, entry = key.partition(".")
        is_map = name in fields and typing.get_origin(hints[name]) is dict
        if name not in fields or bool(dot) != is_map:
            near = difflib.get_close_matches(name, fields, 1)
            known = ", ".join(f"{f}.<name>" if typing.get_origin(hints[f]) is dict else f for f in fields)
            hint = f"Did you mean {near[0]}? " if near and near[0] != name else ""
            raise UserError("Unknown argument.", key=key, value=value, remedy=f"{hint}Arguments are {known}.")
        target, slot = (given.setdefault(name, {}), entry) if is_map else (given, name)
        if slot in target:
            raise UserError("The argument is given twice.", key=key, value=value, remedy="Keep one of the two.")
        target[slot] = _convert(key, value, typing.get_args(hints[name])[1] if is_map else hints[name])
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise UserError("A required argument is missing.", key=name, remedy=f"Add {name}=<value>.")
    return options(**given)


def run(main: Callable[[T], None], options: type[T]) -> None:
    """Parse sys.argv, call `main`; a UserError is printed without its traceback and ends the process with status 2."""
    try:
        main(parse(sys.argv[1:], options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _pairs(arguments: Iterable[str]) -> Iterable[tuple[str, str]]:
    waiting = None
    for argument in arguments:
        if waiting is not None:
            yield waiting, argument
            waiting = None
            continue
        key, equals, value = argument.removeprefix("--").partition("=")
        if equals:
            yield key, value
        elif argument.startswith("--"):
            waiting = key
        else:
            raise UserError("Arguments are written key=value.", value=argument, remedy=f"Write {argument}=<value>.")
    if waiting is not None:
        raise UserError("The argument has no value.", key=waiting, remedy=f"Write {waiting}=<value>.")


def _convert(key: str, text: str, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if text in ("null", "none", "None"):
            return None
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    if hint is Any:
        try:
            return json.loads(text)
        except ValueError:
            return text
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        return hint(text)
    except (ValueError, KeyError):
        raise UserError("The value has the wrong type.", key=key, value=text, remedy=f"Give {hint.__name__}.") from None
