"""Attempts at a stage, one small file each, so that time spent before a kill is not forgotten."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from verl_s2d.workflow.store.manifest import write_atomically

_NAME = re.compile(r"attempt-(\d+)\.json")


def begin(directory: Path) -> int:
    """Number (from 1) of a new attempt, entered as started now.

    Attempts that a kill left open are closed with the time of the last sign of life in the directory.
    """
    folder = directory / "attempts"
    folder.mkdir(exist_ok=True)
    alive = last_change(directory)
    for path in _files(directory):
        entry = _read(path)
        if entry and entry["ended"] is None:
            entry["ended"] = max(entry["started"], alive)
            write_atomically(path, json.dumps(entry))
    number = 1 + max((int(_NAME.fullmatch(p.name)[1]) for p in _files(directory)), default=0)
    write_atomically(
        folder / f"attempt-{number}.json", json.dumps({"started": time.time(), "ended": None, "exit": None})
    )
    return number


def end(directory: Path, number: int, exit_code: int | None, seconds: float) -> None:
    """Enter the end of an attempt.

    Args:
        seconds: that it took, by a clock that nobody sets.
    """
    path = directory / "attempts" / f"attempt-{number}.json"
    entry = _read(path) or {"started": time.time()}
    write_atomically(path, json.dumps({**entry, "ended": time.time(), "exit": exit_code, "seconds": seconds}))


def count(directory: Path) -> int:
    """How many attempts there were."""
    return len(_files(directory))


def is_open(directory: Path) -> bool:
    """Whether the newest attempt has not ended (or was killed before it could say so)."""
    newest = max(_files(directory), key=lambda p: int(_NAME.fullmatch(p.name)[1]), default=None)
    entry = _read(newest) if newest else None
    return entry is not None and entry["ended"] is None


def seconds_spent(directory: Path, now: float | None = None) -> float:
    """Seconds over all attempts; an open one, or one that was killed, by the times of its files and its last sign of
    life: until `now` if it may still be alive."""
    total = 0.0
    for path in _files(directory):
        if entry := _read(path):
            ended = entry["ended"] if entry["ended"] is not None else (now or last_change(directory))
            total += entry.get("seconds", max(0.0, ended - entry["started"]))
    return total


def span(directory: Path) -> tuple[float | None, float | None]:
    """When the first attempt began and the last one ended (epoch seconds), None where that is not known."""
    entries = [entry for path in _files(directory) if (entry := _read(path))]
    ended = [entry["ended"] for entry in entries if entry["ended"] is not None]
    return min((entry["started"] for entry in entries), default=None), max(ended, default=None)


def last_change(directory: Path) -> float:
    """Newest modification time (epoch seconds) of anything in the stage's directory."""
    newest = 0.0
    for path in directory.rglob("*"):
        try:
            newest = max(newest, path.stat().st_mtime)
        except OSError:
            continue
    return newest


def _files(directory: Path) -> list[Path]:
    return [p for p in (directory / "attempts").glob("attempt-*.json") if _NAME.fullmatch(p.name)]


def _read(path: Path) -> dict | None:
    try:
        entry = json.loads(path.read_text())
        return entry if {"started", "ended"} <= entry.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
