"""Record that an alarm has stopped a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.data.files import write_json

STOPPED = "stopped.json"
"""{"alarm": its record, "steps": done until the end, "kept": step of the result, "score": its validation score}. As
long as the file exists the stage is not started again."""


def record(directory: Path, stopped: Mapping[str, Any]) -> None:
    """Write the record: first the alarm, later also the checkpoint that is kept."""
    write_json(stopped, directory / STOPPED)


def read(directory: Path) -> dict[str, Any] | None:
    """Read the record of a stage that was stopped; None for any other."""
    try:
        stopped = json.loads((directory / STOPPED).read_text())
        return stopped if {"text", "since"} <= stopped["alarm"].keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def steps_done(directory: Path) -> int | None:
    """Count the steps that a stopped stage has done, including those after its result; None for any other stage."""
    return (read(directory) or {}).get("steps")
