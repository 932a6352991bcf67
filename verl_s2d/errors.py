"""The error that a user is meant to read, and the one by which a verifier says that it could not judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_UNSET = object()


class UserError(Exception):
    """Bad input, found before anything expensive starts.

    Args:
        problem: what is wrong, one sentence.
        key: the recipe key, option or column at fault.
        value: its offending value.
        remedy: what to do about it, one sentence.

    Attributes:
        also: further faults that were found with this one.
    """

    def __init__(self, problem: str, *, key: str | None = None, value: Any = _UNSET, remedy: str | None = None):
        self.problem, self.key, self.remedy = problem, key, remedy
        self.value = None if value is _UNSET else value
        self.also: tuple[UserError, ...] = ()
        lines = [problem]
        if key is not None:
            lines.append(f"  key:    {key}")
        if value is not _UNSET:
            lines.append(f"  value:  {value!r}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))

    def texts(self) -> list[str]:
        """Return the text of each fault."""
        return [error.args[0] for error in (self, *self.also)]

    def __str__(self) -> str:
        return "\n".join(self.texts())


class Unscored(Exception):
    """A verifier could not judge, for no fault of the response: a service is down, a process was killed from outside.

    A verifier raises it with the reason. The call is repeated after pauses (verifiers/score.py); a response that stays
    unscored never counts as wrong.

    Args:
        lasting: another call would end likewise, so that none is made.
    """

    def __init__(self, reason: str = "", *, lasting: bool = False):
        super().__init__(reason)
        self.lasting = lasting


class Faults:
    """Collects the faults of a group, so that a user reads all of them at once.

    Stages of several rows and seeds share most settings: of faults with equal key, value and remedy the first is kept.
    """

    def __init__(self) -> None:
        self._found: dict[tuple, UserError] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the UserError of the block, and go on after it."""
        try:
            yield
        except UserError as error:
            self.add(error)

    def add(self, error: UserError) -> None:
        """Keep an error, and those found with it."""
        for fault in (error, *error.also):
            place = fault.key and (fault.key, repr(fault.value), fault.remedy)
            self._found.setdefault(place or (fault.args[0],), fault)

    def raise_found(self) -> None:
        """Raise the first fault, with the others as its `also`; none, and nothing happens."""
        if self._found:
            raise together(self._found.values())


def together(faults: Iterable[UserError]) -> UserError:
    """Join faults, at least one, into the first."""
    first, *others = faults
    first.also = tuple(others)
    return first
