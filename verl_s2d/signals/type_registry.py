"""Find classes of settings by their `type`: a name from a folder of this package, or file.py:Name for a user's own."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from verl_s2d import user_code
from verl_s2d.errors import UserError
from verl_s2d.validation import Section, suggestion, validated

S = TypeVar("S", bound=Section)


class TypeRegistry(Generic[S]):
    """Reads sections {type: name, key: value} as instances of the class with that type.

    Args:
        folder: package whose files define the classes.
        base: class from which all of them derive.
        bases: classes from which a user's own has to derive, at least one of them.
        what: the word for one of them in messages.
    """

    def __init__(self, folder: ModuleType, base: type[S], bases: tuple[type[S], ...], what: str):
        self._folder, self._base, self._bases, self._what = folder, base, bases, what

    @functools.cached_property
    def known(self) -> Mapping[str, type[S]]:
        """Import the folder's files and return their classes: type -> class."""
        found: dict[str, type[S]] = {}
        for file in pkgutil.iter_modules(self._folder.__path__):
            if file.ispkg or file.name.endswith("_registry"):
                continue
            for value in vars(importlib.import_module(f"{self._folder.__name__}.{file.name}")).values():
                derived = isinstance(value, type) and issubclass(value, self._base)
                if derived and not value.model_fields["type"].is_required():
                    found[value.model_fields["type"].default] = value
        return found

    def read(self, section: Mapping[str, Any], *, default: str, key: str) -> S:
        """Read a section {type: jsd, beta: 0.3}.

        Args:
            default: the type if the section gives none.
            key: dotted key of the section, for messages.

        Raises:
            UserError: the type is unknown, a key or value is not its own, or a user's file does not load.
        """
        chosen = dict(section)
        kind = chosen.pop("type", None) or default
        found, kind = self.class_of(kind, f"{key}.type")
        keys = found.known_keys()
        for name, value in chosen.items():
            if name not in keys:
                users = self.types_with(name)
                raise UserError(
                    f"{self._what} {kind} has no such key",
                    key=f"{key}.{name}",
                    value=value,
                    remedy=f"leave it out, or use a {self._what} that has it: {', '.join(users)}"
                    if users
                    else suggestion(name, keys),
                )
        return validated(found, chosen | {"type": kind}, key=key)

    def types_with(self, key: str) -> list[str]:
        """List the folder's types that have this key."""
        return [name for name, found in self.known.items() if key in found.known_keys()]

    def class_of(self, kind: Any, key: str) -> tuple[type[S], str]:
        """Return the class of a type, and the type with an absolute path, valid in every process.

        Raises:
            UserError: the type is unknown, or a user's file does not load or has no class of this sort.
        """
        if kind in self.known:
            return self.known[kind], kind
        file, colon, name = str(kind).rpartition(":")
        if not colon:
            remedy = f"one of {', '.join(self.known)}, or file.py:Name"
            raise UserError(f"unknown {self._what}", key=key, value=kind, remedy=remedy)
        kind = f"{Path(file).expanduser().resolve()}:{name}"
        found = user_code.load(kind, what=self._what, key=key)
        if not (isinstance(found, type) and issubclass(found, self._bases)):
            bases = " or ".join(base.__name__ for base in self._bases)
            raise UserError(
                f"{name} is no {self._what}",
                key=key,
                value=kind,
                remedy=f"Derive it from {bases} of {self._base.__module__}.",
            )
        return found, kind
