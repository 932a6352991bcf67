"""Detect a stage that makes no progress: no finished step, or no output before the first step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_s2d.metrics.metric_logs import last_entry
from verl_s2d.workflow.watch.log_errors import Evidence, find_error, sizes, worker_logs

_LOOK_SECONDS = 2.0
_LONGER_STEP = 10
"""A step may take 10x the longest step so far, whatever the limit: steps that validate or save are rare."""


@dataclass(frozen=True)
class Limits:
    """Limits to the time without progress, in seconds.

    Attributes:
        silent: seconds without a change in the stage's directory; counts before the first step and in stages without
            steps.
        step: seconds without a finished step; never less than 10x the longest step so far.
    """

    silent: float
    step: float


class Watchdog:
    """Looks at a stage's directory every two seconds.

    Args:
        metrics: the attempt's metrics file.
        logs: directory of Ray's worker logs; None when it cannot be read here.
        stepping: the stage counts steps.
        clock: returns seconds.
    """

    def __init__(
        self,
        directory: Path,
        metrics: Path,
        logs: Path | None,
        limits: Limits,
        *,
        stepping: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._directory, self._metrics, self._logs = directory, metrics, logs
        self._limits, self._stepping, self._clock = limits, stepping, clock
        self._looked = self._changed = self._progressed = clock()
        self._progress_time = time.time()
        self._files: dict[Path, tuple[int, float]] = {}
        self._longest = 0.0
        self._begin = self._after = self._sizes = sizes(self._all_logs())
        self.step: int | None = None
        self.data: dict[str, Any] = {}
        """Metrics of that step."""

    def look(self) -> bool:
        """Read the directory if two seconds have passed since the last time; return whether it was read."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        step, self.data = last_entry(self._metrics) or (None, {})
        if step != self.step:
            if self.step is not None:  # the time until the first step includes the start
                self._longest = max(self._longest, now - self._progressed)
            self.step, self._progressed, self._progress_time = step, now, time.time()
            # Sizes of two seconds ago: the logs may already hold an error from just after the step.
            self._after = self._sizes
        if self._by_output() and (files := self._snapshot()) != self._files:
            self._files, self._changed = files, now
        self._sizes = sizes(self._all_logs())
        return True

    def stalled(self) -> str | None:
        """Describe the stall and the limit that was passed; None while there is none."""
        limits, silent, idle = self._limits, self._looked - self._changed, self._looked - self._progressed
        if self._by_output() and silent > limits.silent:
            return f"no output for {_minutes(silent)} (limit: cluster.stall_minutes = {limits.silent / 60:g})"
        if self._stepping and idle > max(limits.step, _LONGER_STEP * self._longest):
            longest = f"; its longest step took {_minutes(self._longest)}" if self._longest else ""
            return f"no step for {_minutes(idle)} (limit: cluster.step_minutes = {limits.step / 60:g}{longest})"
        return None

    def progress(self) -> str:
        """Describe the last step and its time, for messages."""
        when = time.strftime("%H:%M:%S", time.localtime(self._progress_time))
        return f"its last step was {self.step}, at {when}" if self.step is not None else f"no step since {when}"

    def error(self) -> Evidence | None:
        """Find the last error since the last step: a worker's, or else the driver's."""
        return find_error(self._all_logs(), self._after)

    def worker_error(self) -> Evidence | None:
        """Find the last error of a worker since the attempt began."""
        own = find_error(worker_logs(self._logs), self._begin)
        return own or find_error([self._directory / "log.txt"], self._begin, only_forwarded=True)

    def _by_output(self) -> bool:
        """Report whether progress is judged by output instead of steps."""
        return self.step is None or not self._stepping

    def _all_logs(self) -> list[Path]:
        return [*worker_logs(self._logs), self._directory / "log.txt"]

    def _snapshot(self) -> dict[Path, tuple[int, float]]:
        """Map file -> (size, modification time) for the stage's files.

        The newest time alone would miss writes after a clock was set back.
        """
        found = {}
        for path in self._directory.rglob("*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            found[path] = stat.st_size, stat.st_mtime
        return found


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"
