"""Read and merge the metrics of a stage: verl's "file" logger truncates on open, so every attempt has a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRUNCATED = "truncated"
"""Computed metric: share of the responses that are cut off at the stage's limit."""
_ATTEMPT = re.compile(r"attempt-(\d+)\.jsonl")


def attempt_files(directory: Path) -> list[Path]:
    """List <stage>/metrics/attempt-K.jsonl in the order of the attempts."""
    found = [
        (int(m[1]), p) for p in (directory / "metrics").glob("attempt-*.jsonl") if (m := _ATTEMPT.fullmatch(p.name))
    ]
    return [path for _, path in sorted(found)]


def read_metrics(directory: Path) -> dict[int, dict[str, Any]]:
    """Map step -> metrics over all attempts, ascending; a repeated step replaces the earlier one.

    A last line that a kill cut short is left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    for path in attempt_files(directory):
        this_attempt: dict[int, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                this_attempt.setdefault(int(entry["step"]), {}).update(entry["data"])
            except (ValueError, KeyError, TypeError):
                continue
        steps.update(this_attempt)
    return dict(sorted(steps.items()))


def value_of(key: str, data: Mapping[str, Any], response_tokens: int | None) -> Any:
    """Return a metric of a step, or compute it; None if it was not logged.

    Args:
        response_tokens: length at which the stage cuts responses; None: no share of truncated ones.
    """
    if key != TRUNCATED:
        return data.get(key)
    # verl's clip ratio is the share of responses as long as the longest of the batch, which may be below the limit.
    share, longest = data.get("response_length/clip_ratio"), data.get("response_length/max")
    if response_tokens is None or not all(isinstance(value, int | float) for value in (share, longest)):
        return None
    return share if longest >= response_tokens else 0.0


def last_step(path: Path) -> int | None:
    """Read the newest step from the tail of a metrics file; None if there is none yet."""
    entry = last_entry(path)
    return entry[0] if entry else None


def last_entry(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Read the newest step and its metrics from the tail of a metrics file; None if there is none yet."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 65536))
            lines = stream.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            return int(entry["step"]), dict(entry["data"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
