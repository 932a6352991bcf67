"""Measure the processor time of all that descends from this process, orphans included, as a function of time."""

from __future__ import annotations

import bisect
import ctypes
import os
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from verl_s2d.sandbox.process_tree import descendants

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h"""
_INTERVAL = 0.5
_TICK = os.sysconf("SC_CLK_TCK")


class ProcessorClock:
    """Processor seconds of this process's descendants, read every half second while it is open.

    `readings` are (epoch seconds, processor seconds so far).

    Processes that their parents leave behind, such as Ray's, become children of this process, which is made a
    subreaper (Linux). Not counted: processes that live for less than half a second, and the last half second of others.
    """

    def __init__(self) -> None:
        self.readings: list[tuple[float, float]] = []
        self._used: dict[tuple[int, int], int] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessorClock:
        _adopt_orphans(True)
        self._read()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
        self._read()
        _adopt_orphans(False)

    def seconds(self, spans: Sequence[tuple[float, float]]) -> float | None:
        """Return the processor seconds used in spans of epoch seconds; None: a span that it did not watch."""
        return seconds_within(self.readings, spans)

    def _watch(self) -> None:
        while not self._closed.wait(_INTERVAL):
            self._read()

    def _read(self) -> None:
        for pid in descendants(os.getpid()):
            if pid == os.getpid():
                continue
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            # A number may be given to a new process: its start tells them apart.
            self._used[pid, int(fields[19])] = int(fields[11]) + int(fields[12])
        self.readings.append((time.time(), sum(self._used.values()) / _TICK))


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def seconds_within(readings: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]]) -> float | None:
    """Interpolate (epoch seconds, seconds used so far) to the ends of spans; None: a span that begins before them."""
    if not spans or not readings or any(began < readings[0][0] for began, _ in spans):
        return None
    return sum(_at(readings, ended) - _at(readings, began) for began, ended in spans)


def _at(readings: Sequence[tuple[float, float]], moment: float) -> float:
    after = bisect.bisect_left(readings, (moment,))
    if after in (0, len(readings)):
        return readings[min(after, len(readings) - 1)][1]
    (t0, used0), (t1, used1) = readings[after - 1], readings[after]
    return used0 + (used1 - used0) * (moment - t0) / (t1 - t0)
