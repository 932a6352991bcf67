"""Whether a log says anything new: who waits for one that will never answer repeats himself."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path

_READ_BYTES = 2**20
_REMEMBERED = 4096
_FORWARDED = re.compile(r"^\([^()]*pid=\d+[^)]*\) ?")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[a-zA-Z]")
_TIMES = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}:\d\d(?::\d\d)?(?:[.,]\d+)?")
_REPEATED_BY_RAY = re.compile(r"\[repeated \d+x across cluster\].*$")
_STATISTICS = re.compile(r"\[Performance\]|^Time range: last |^Per-operation statistics: ")
"""What TransferQueue counts every five minutes, verl's asking whether anything has come included."""


class Novelty:
    """Reads what a log has gained since this was made, and tells repetition from news.

    A line that differs from an earlier one only in times, colours or the process that said it is a repetition. The last
    4,096 different lines are remembered.
    """

    def __init__(self, log: Path):
        self._log, self._offset = log, log.stat().st_size if log.exists() else 0
        self._known: OrderedDict[str, None] = OrderedDict()

    def look(self) -> bool:
        """Whether a line has come since the last look that was not there before."""
        return bool([line for line in self._gained() if self._is_new(line)])

    def _gained(self) -> list[str]:
        try:
            with self._log.open("rb") as stream:
                size = stream.seek(0, 2)
                # A log that is shorter than it was is another one.
                begin = self._offset if size >= self._offset else 0
                stream.seek(max(begin, size - _READ_BYTES))
                read = stream.read(_READ_BYTES)
                self._offset = stream.tell()
        except OSError:
            return []
        return re.split(r"[\r\n]+", read.decode(errors="replace"))

    def _is_new(self, line: str) -> bool:
        said = _FORWARDED.sub("", _COLOURS.sub("", line))
        if _STATISTICS.search(said):
            return False
        said = _TIMES.sub("", _REPEATED_BY_RAY.sub("", said)).strip()
        if not said:
            return False
        if said in self._known:
            self._known.move_to_end(said)
            return False
        self._known[said] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return True
