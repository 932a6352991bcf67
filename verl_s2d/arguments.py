"""Write and read `key=value` command lines of this project's modules and recipe scripts.

Values are JSON, except text that is not JSON: it stands bare. Written and read again, a value keeps its type.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from verl_s2d.errors import UserError
from verl_s2d.validation import suggestion, validated

T = TypeVar("T")
_NULLS = ("null", "none", "None")


def plain_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Write one `key=value` argument per entry, for `parse`.

    Raises:
        TypeError: a value that JSON does not have.
    """
    return [f"{key}={_written(value)}" for key, value in arguments.items()]


def parse(arguments: Iterable[str], options: type[T]) -> T:
    """Fill the dataclass `options` from `key=value` arguments; `--key value` is read as `key=value`.

    Text becomes what the field's type says; `| None` takes `null`, and `Any` takes what JSON makes of the text. Text in
    JSON's quotes is text for every type. A field `f: dict[str, ...]` collects `f.name=value`.

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
        section[slot] = _read(text, typing.get_args(hints[name])[1] if dot else hints[name])
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


def _written(value: Any) -> str:
    """Write a value: bare where it is text that `_read` takes for nothing else, otherwise in JSON."""
    bare = isinstance(value, str) and value not in _NULLS and _json(value) is _NO_JSON
    return value if bare else json.dumps(value)


def _read(text: str, hint: Any) -> Any:
    """Read what a field's type does not tell from text: null, quoted text, and JSON where it may stand."""
    members = {hint, typing.get_origin(hint), *typing.get_args(hint)}
    if types.NoneType in members and text in _NULLS:
        return None
    value = _json(text)
    if isinstance(value, str) or (value is not _NO_JSON and members & {Any, list}):
        return value
    return text


_NO_JSON = object()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return _NO_JSON
