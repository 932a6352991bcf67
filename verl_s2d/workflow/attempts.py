"""Record the attempts at a stage, one small file each: the time before a kill counts in the ledger."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from verl_s2d.data.files import write_json

_NAME = re.compile(r"attempt-(\d+)\.json")


def begin(directory: Path) -> int:
    """Record that a new attempt starts now; return its number, from 1.

    Attempts that a kill left open get the time of the newest file in the directory as their end.
    """
    folder = directory / "attempts"
    folder.mkdir(exist_ok=True)
    alive = last_change(directory)
    for path in _files(directory):
        entry = _read(path)
        if entry and entry["ended"] is None:
            entry["ended"] = max(entry["started"], alive)
            write_json(entry, path)
    number = 1 + max((int(_NAME.fullmatch(p.name)[1]) for p in _files(directory)), default=0)
    write_json({"started": time.time(), "ended": None, "exit": None}, folder / f"attempt-{number}.json")
    return number


def end(directory: Path, number: int, exit_code: int | None, seconds: float) -> None:
    """Record the end of an attempt.

    Args:
        seconds: its duration by a monotonic clock.
    """
    path = directory / "attempts" / f"attempt-{number}.json"
    entry = _read(path) or {"started": time.time()}
    write_json({**entry, "ended": time.time(), "exit": exit_code, "seconds": seconds}, path)


def count(directory: Path) -> int:
    """Count the attempts."""
    return len(_files(directory))


def is_open(directory: Path) -> bool:
    """Report whether the newest attempt has no recorded end: it is running, or was killed."""
    newest = max(_files(directory), key=lambda p: int(_NAME.fullmatch(p.name)[1]), default=None)
    entry = _read(newest) if newest else None
    return entry is not None and entry["ended"] is None


def seconds_spent(directory: Path, now: float | None = None) -> float:
    """Sum the seconds of all attempts. One without a recorded end counts up to the newest file, or up to `now` if it is
    still running."""
    total = 0.0
    for path in _files(directory):
        if entry := _read(path):
            ended = entry["ended"] if entry["ended"] is not None else (now or last_change(directory))
            total += entry.get("seconds", max(0.0, ended - entry["started"]))
    return total


def span(directory: Path) -> tuple[float | None, float | None]:
    """Return the start of the first attempt and the end of the last one (epoch seconds), None where unknown."""
    entries = [entry for path in _files(directory) if (entry := _read(path))]
    ended = [entry["ended"] for entry in entries if entry["ended"] is not None]
    return min((entry["started"] for entry in entries), default=None), max(ended, default=None)


def last_change(directory: Path) -> float:
    """Return the newest modification time (epoch seconds) below the stage's directory."""
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
