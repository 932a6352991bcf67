"""The one error a user is meant to read."""

from __future__ import annotations

from typing import Any

_UNSET = object()


class UserError(Exception):
    """Bad input, found before anything expensive starts.

    Args:
        problem: what is wrong, one sentence.
        key: the recipe key, option or column at fault.
        value: its offending value.
        remedy: what to do about it, one sentence.
    """

    def __init__(self, problem: str, *, key: str | None = None, value: Any = _UNSET, remedy: str | None = None):
        self.problem, self.key, self.remedy = problem, key, remedy
        self.value = None if value is _UNSET else value
        lines = [problem]
        if key is not None:
            lines.append(f"  key:    {key}")
        if value is not _UNSET:
            lines.append(f"  value:  {value!r}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))
