"""One attempt at a stage: start its process, watch it, stop it when it stalls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.logs import last_lines
from verl_s2d.workflow.metrics import last_step
from verl_s2d.workflow.process import Launcher, stop
from verl_s2d.workflow.progress import Progress
from verl_s2d.workflow.stages.base import Command, metrics_file

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 2.0
_GRACE_SECONDS = 15.0
_SHOWN_LINES = 15


def run_attempt(
    node: Node,
    command: Command,
    directory: Path,
    attempt: int,
    *,
    launcher: Launcher,
    environment: Mapping[str, str],
    stall_seconds: float,
    progress: Progress,
) -> None:
    """Run the command to its end; whatever way this function is left, the process is gone.

    Raises:
        StageFailed: it exited with an error, or nothing in its directory changed for `stall_seconds`.
    """
    log, metrics = directory / "log.txt", metrics_file(directory, attempt)
    metrics.parent.mkdir(exist_ok=True)
    with log.open("a") as stream:
        stream.write(f"=== attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    handle = launcher.start(command.argv, environment, directory, log)
    try:
        watch = _Watch(directory, metrics)
        while (code := handle.poll()) is None:
            time.sleep(_POLL_SECONDS)
            if watch.look():
                if watch.step is not None:
                    progress.stage_step(watch.step)
                if watch.silent_seconds > stall_seconds:
                    raise StageFailed(
                        f"{node.name} stalled: no output for {watch.silent_seconds / 60:.1f} minutes "
                        f"(limit: cluster.stall_minutes = {stall_seconds / 60:g}), so it was stopped.",
                        log=log,
                        lines=last_lines(log, _SHOWN_LINES),
                    )
        if code != 0:
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise StageFailed(f"{node.name} {how}.", log=log, lines=last_lines(log, _SHOWN_LINES))
    finally:
        stop(handle, _GRACE_SECONDS)


class _Watch:
    """Signs of life of a stage: the size and time of everything in its directory."""

    def __init__(self, directory: Path, metrics: Path):
        self._directory, self._metrics = directory, metrics
        self._looked = self._changed = time.monotonic()
        self._seen: object = None
        self.step: int | None = None

    @property
    def silent_seconds(self) -> float:
        return time.monotonic() - self._changed

    def look(self) -> bool:
        """Look again when it is time to; whether it was."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        seen = self._snapshot()
        if seen != self._seen:
            self._seen, self._changed = seen, now
        self.step = last_step(self._metrics) if self._metrics.exists() else None
        return True

    def _snapshot(self) -> tuple[int, int, float]:
        count, size, newest = 0, 0, 0.0
        for path in self._directory.rglob("*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime)
        return count, size, newest
