"""Notices a stage that makes no progress, and says what it was doing last."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from verl_s2d.workflow.watch.log_errors import Evidence, died, find_error, sizes, worker_logs
from verl_s2d.workflow.watch.metric_logs import last_step
from verl_s2d.workflow.watch.novelty import Novelty

_LOOK_SECONDS = 2.0
_WITH_ERROR, _LEAST_WITH_ERROR = 0.2, 60.0
"""Share of the limit to silence that remains once a log holds an error (before the first step: tells of a death), and
the seconds it is never cut below."""
_LONGER_STEP, _LONGER_STEP_AT_REST = 10, 3
"""How many times as long as the longest one before a step may take; the second once a log holds an error or
repeats itself."""


@dataclass(frozen=True)
class Limits:
    """What counts as a stall, in seconds.

    Attributes:
        silent: nothing in the stage's directory changes, and its log says nothing new (verl writes the same line once a
            minute while it waits; while a log repeats itself it is three times the longest step at least). A fifth of
            it (but a minute) once a log holds an error: verl and Ray can wait long for a worker that has failed.
        step: the log goes on, but no step ends; at least ten times the longest step before. Once a log holds an error
            three times the longest step, but no less than the fifth of `silent`.
    """

    silent: float
    step: float

    @property
    def with_error(self) -> float:
        """What is left of `silent` once a log holds an error."""
        return min(self.silent, max(_LEAST_WITH_ERROR, _WITH_ERROR * self.silent))


class Watchdog:
    """Looks at a stage's directory every two seconds.

    Args:
        metrics: the attempt's metrics file.
        logs: directory of Ray's worker logs, if it can be read here.
        stepping: whether the stage counts steps.
        clock: seconds.
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
        now = clock()
        self._looked = self._changed = self._said = self._progressed = now
        self._progress_time = time.time()
        self._novelty = Novelty(directory / "log.txt")
        self._seen: tuple[Hashable, Hashable] | None = None
        self._longest = 0.0
        self._steps = 0
        self._begin = self._after = self._sizes = sizes(self._all_logs())
        self.step: int | None = None

    def look(self) -> bool:
        """Look again when it is time to; whether it was."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        besides, log = self._snapshot()
        if (besides, log) != self._seen:
            if self._novelty.look() or self._seen is None or besides != self._seen[0]:
                self._said = now
            self._seen, self._changed = (besides, log), now
        step = last_step(self._metrics) if self._metrics.exists() else None
        if step != self.step:
            self._longest = max(self._longest, now - self._progressed)
            self._steps += 1
            self.step, self._progressed, self._progress_time = step, now, time.time()
            # From the look before: an error just after the step may be in the logs already.
            self._after = self._sizes
        self._sizes = sizes(self._all_logs())
        return True

    def stalled(self) -> str | None:
        """What is wrong, with the limit that was passed; None while nothing is."""
        limits = self._limits
        idle = self._looked - self._progressed
        if quiet := self._quiet(limits.silent):
            return f"{quiet} (limit: cluster.stall_minutes = {limits.silent / 60:g})"
        if self._stepping and idle > max(limits.step, _LONGER_STEP * self._longest):
            longest = f"; its longest step took {_minutes(self._longest)}" if self._longest else ""
            limit = f"cluster.step_minutes = {limits.step / 60:g}{longest}"
            return f"output, but no step for {_minutes(idle)} (limit: {limit})"
        shorter = limits.with_error
        quiet = self._quiet(shorter)
        if not quiet and self._stepping and self._steps and idle > max(shorter, _LONGER_STEP_AT_REST * self._longest):
            quiet = f"no step for {_minutes(idle)}"
        if quiet and self._failed():
            return (
                f"a log holds an error, and since then there was {quiet} (limit after an error: {_minutes(shorter)}, "
                f"from cluster.stall_minutes = {limits.silent / 60:g})"
            )
        return None

    def _failed(self) -> bool:
        """Report whether a log holds an error. Before the first step only a death counts: start-up prints tracebacks,
        of optional imports for example, that mean nothing."""
        return self.error() is not None if self._steps else died(self._all_logs(), self._after)

    def _quiet(self, limit: float) -> str | None:
        """For how long nothing came, or nothing but what had been said before, if that is longer than the limit."""
        silent, repeating = self._looked - self._changed, self._looked - self._said
        if silent > limit:
            return f"no output for {_minutes(silent)}"
        if repeating > max(limit, _LONGER_STEP_AT_REST * self._longest):
            return f"no output but repetitions for {_minutes(repeating)}"
        return None

    def progress(self) -> str:
        """The last progress, in words."""
        when = time.strftime("%H:%M:%S", time.localtime(self._progress_time))
        return f"its last step was {self.step}, at {when}" if self.step is not None else f"no step since {when}"

    def error(self) -> Evidence | None:
        """The last error since the last step: a worker's if there is one, otherwise the driver's."""
        return find_error(self._all_logs(), self._after)

    def worker_error(self) -> Evidence | None:
        """The last error of a worker since the attempt began."""
        own = find_error(worker_logs(self._logs), self._begin)
        return own or find_error([self._directory / "log.txt"], self._begin, only_forwarded=True)

    def _all_logs(self) -> list[Path]:
        return [*worker_logs(self._logs), self._directory / "log.txt"]

    def _snapshot(self) -> tuple[Hashable, Hashable]:
        """What the stage's directory looks like: everything but the log, and the log."""
        count, size, newest, log = 0, 0, 0.0, (0, 0.0)
        for path in self._directory.rglob("*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            if path == self._directory / "log.txt":
                log = (stat.st_size, stat.st_mtime)
            else:
                count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime)
        return (count, size, newest), log


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"
