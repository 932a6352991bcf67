"""Record checks of figures against limits. A part writes each check to a file at once."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED, INFORMATION = "ok", "failed", "skipped", "information"
STATES = (OK, FAILED, SKIPPED, INFORMATION)
_MARKS = {OK: "ok  ", FAILED: "FAIL", SKIPPED: "skip", INFORMATION: "    "}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        part: name of the part.
        name: what was measured.
        state: one of STATES; only FAILED fails the machine.
        figure: the result, in words or as a number with its unit.
        limit: the limit in words; empty without one.
        value: the plain number, or other data, for the JSON report.
    """

    part: str
    name: str
    state: str
    figure: str
    limit: str = ""
    value: Any = None

    def text(self) -> str:
        """Format the check as `ok/FAIL part: name  figure  (limit)`."""
        first, *rest = self.figure.splitlines() or [""]
        line = f"{_MARKS[self.state]} {self.part}: {self.name}  {first}"
        line += f"  ({self.limit})" if self.limit else ""
        return "\n".join([line, *(f"       {more}" for more in rest)])


class Recorder:
    """Writes the checks of one part to a file, before each call returns.

    Args:
        part: name of the part.
        path: file of one JSON object per line.
    """

    def __init__(self, part: str, path: Path):
        self._part, self._path = part, path

    def at_most(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Check value <= limit; a value that is not a number fails."""
        self._bounded(name, value, value <= limit, f"<= {_number(limit)}{_unit(unit)}", unit)

    def at_least(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Check value >= limit; a value that is not a number fails."""
        self._bounded(name, value, value >= limit, f">= {_number(limit)}{_unit(unit)}", unit)

    def expect(self, name: str, ok: bool, figure: Any, limit: str = "", *, value: Any = None) -> None:
        """Record a condition that the caller has evaluated."""
        self._write(Check(self._part, name, OK if ok else FAILED, str(figure), limit, value))

    def figure(self, name: str, value: Any, unit: str = "") -> None:
        """Record a figure without a limit."""
        text = _number(value) if isinstance(value, int | float) else str(value)
        self._write(Check(self._part, name, INFORMATION, f"{text}{_unit(unit)}", "", value))

    def skip(self, name: str, why: str) -> None:
        """Record a check that is impossible here; a skipped check is never ok."""
        self._write(Check(self._part, name, SKIPPED, why))

    def _bounded(self, name: str, value: float, ok: bool, limit: str, unit: str) -> None:
        figure = f"{_number(value)}{_unit(unit)}"
        self._write(Check(self._part, name, OK if ok else FAILED, figure, limit, value))

    def _write(self, check: Check) -> None:
        data = asdict(check)
        if isinstance(check.value, float) and not math.isfinite(check.value):
            data["value"] = str(check.value)  # few JSON readers accept NaN
        with self._path.open("a") as stream:
            stream.write(json.dumps(data, default=str) + "\n")


def read_checks(path: Path) -> list[Check]:
    """Read all complete lines of a recorder's file; empty if the file is missing."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [Check(**json.loads(line)) for line in lines]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""
