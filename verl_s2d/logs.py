"""The end of a log file, for messages."""

from __future__ import annotations

import re
from pathlib import Path

_NOISE = re.compile(r"^(\([^()]*pid=\d+[^)]*\))?\s*($|warnings\.warn)|Warning:|it/s\]|s/it\]")
"""Also of a worker, whose lines Ray forwards with its name and number before them."""
_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-Z]$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log worth showing: progress bars, warnings and blank lines are left out."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 2**17))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    plain = [without_colour(line) for line in lines if not _CURSOR.search(line)]
    return [line[:400] for line in plain if not _NOISE.search(line)][-count:]


def without_colour(text: str) -> str:
    """Remove the escape sequences that colour a terminal's text."""
    return _COLOUR.sub("", text)
