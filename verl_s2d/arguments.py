"""`key=value` command lines of this project's modules and recipe scripts, read into a dataclass."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from verl_s2d.errors import UserError
from verl_s2d.validation import suggestion, validated

T = TypeVar("T")


def parse(arguments: Iterable[str], options: type[T]) -> T:
    """Fill the dataclass `options` from `key=value` arguments; `--key value` is read as `key=value`.

    Text becomes what the field's type says; `| None` takes `null`. A field `f: dict[str, ...]` collects `f.name=value`,
    and with `Any` as its value type reads JSON where a value is JSON, otherwise text.

    Raises:
        UserError: an unknown, repeated or missing key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(options)
    names = [field.name for field in dataclasses.fields(options)]
    maps = {name for name in names if typing.get_origin(hints[name]) is dict}
    given: dict[str, Any] = {}
    for key, text in _pairs(arguments):
        name, dot, entry = key.partition(".")
        if name not in names or bool(dot) != (name in maps):
            known = [f"{known}.<name>" if known in maps else known for known in names]
            raise UserError("Unknown argument.", key=key, value=text, remedy=suggestion(key, known))
        section, slot = (given.setdefault(name, {}), entry) if dot else (given, name)
        if slot in section:
            raise UserError("The argument is given twice.", key=key, value=text, remedy="Keep one of the two.")
        section[slot] = _plain(text, typing.get_args(hints[name]))
    return validated(options, given, strict=False)


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


def _plain(text: str, members: tuple[Any, ...]) -> Any:
    """Read what no type tells from text: null, and JSON where anything may stand."""
    if types.NoneType in members and text in ("null", "none", "None"):
        return None
    if Any in members:
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text
