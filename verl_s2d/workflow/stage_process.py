"""Run one attempt at a stage: start its process, watch it, stop it when it stalls or loses an actor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from verl_s2d.logs import last_lines
from verl_s2d.metrics.metric_table import live_figures
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.process import Handle, Launcher, stop
from verl_s2d.workflow.interruption import Interruption
from verl_s2d.workflow.progress import Progress
from verl_s2d.workflow.stage import Command, metrics_file
from verl_s2d.workflow.watch.alarm_log import AlarmWatch
from verl_s2d.workflow.watch.log_errors import Evidence, keep
from verl_s2d.workflow.watch.ray_deaths import DeathWatch
from verl_s2d.workflow.watch.watchdog import Limits, Watchdog

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 15.0
_DEATH_SECONDS = 60.0
"""Time for the driver to end by itself after an actor's death: its own error says more."""
_SHOWN_LINES = 15


class Workers(Protocol):
    """The Ray workers of a stage."""

    def worker_logs(self) -> Path | None:
        """Return the directory of their logs; None when it cannot be read here."""

    def at_work(self) -> list[str]:
        """List the workers on this machine that hold an actor or run a task, with what they run."""


def run_attempt(
    node: Node,
    command: Command,
    directory: Path,
    attempt: int,
    *,
    launcher: Launcher,
    environment: Mapping[str, str],
    limits: Limits,
    progress: Progress,
    interruption: Interruption,
    alarms: AlarmWatch | None = None,
    workers: Workers | None = None,
) -> None:
    """Run the command to its end, or until an alarm stops it. The process has ended on return and on any exception.

    Args:
        alarms: given for stages that train, and therefore log steps.
        workers: given for stages that run on Ray; `environment` then has the cluster's RAY_ADDRESS.

    Raises:
        StageFailed: the process failed, made no progress within `limits`, or waited for an actor that died.
        Interrupted: the process did not save and stop in time when asked to.
    """
    log, metrics = directory / "log.txt", metrics_file(directory, attempt)
    metrics.parent.mkdir(exist_ok=True)
    with log.open("a") as stream:
        stream.write(f"=== attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    logs = workers.worker_logs() if workers else None
    if _alarmed(node, alarms, progress):
        return
    watchdog = Watchdog(directory, metrics, logs, limits, stepping=alarms is not None)
    handle = launcher.start(command.argv, environment, directory, log)
    deaths = None
    try:
        if workers is not None and "RAY_ADDRESS" in environment:
            deaths = DeathWatch(launcher, environment, directory / "worker-logs" / f"attempt-{attempt}-deaths.txt")
        code = _watch(node, handle, watchdog, alarms, progress, interruption, directory, attempt, workers, deaths)
        # The last steps may raise the alarm: a trainer gives up after several updates that are not finite.
        if code != 0 and not _alarmed(node, alarms, progress):
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            if death := deaths and deaths.death():
                how += f" after the death of {death}"
            raise _failure(f"{node.name} {how}; {watchdog.progress()}", watchdog.worker_error(), directory, attempt)
    finally:
        if deaths is not None:
            deaths.stop()
        stop(handle, _GRACE_SECONDS)


def _watch(
    node: Node,
    handle: Handle,
    watchdog: Watchdog,
    alarms: AlarmWatch | None,
    progress: Progress,
    interruption: Interruption,
    directory: Path,
    attempt: int,
    workers: Workers | None,
    deaths: DeathWatch | None,
) -> int:
    """Wait for the end and return the exit code; 0 also when an alarm stops the stage."""
    death, seen = None, 0.0
    # no limit: the watchdog's
    while (code := handle.poll()) is None:
        time.sleep(_POLL_SECONDS)
        interruption.check()
        if not watchdog.look():
            continue
        progress.stage_step(node, watchdog.step, live_figures(node.stage.metrics, watchdog.data))
        if _alarmed(node, alarms, progress):
            return 0
        if deaths is not None and death is None and (death := deaths.death()):
            seen = time.monotonic()
            progress.note(f"    {node.name}: an actor has died, {death}")
        problem = f"{node.name} stalled: {stall}" if (stall := watchdog.stalled()) else ""
        if death and time.monotonic() - seen > _DEATH_SECONDS:
            problem = f"{node.name} was waiting for an actor that has died, {death}"
        if problem:
            at_work = workers.at_work() if workers else []
            waiting = f" At work: {', '.join(at_work)}." if at_work else ""
            problem = f"{problem}, so it was stopped; {watchdog.progress()}.{waiting}"
            raise _failure(problem.removesuffix("."), watchdog.error(), directory, attempt)
    _alarmed(node, alarms, progress)
    return code


def _alarmed(node: Node, alarms: AlarmWatch | None, progress: Progress) -> bool:
    """Show new alarms; return whether an alarm stops the stage."""
    for alarm in alarms.look() if alarms else ():
        progress.note(f"    {node.name}: ALARM, {alarm.text}")
    return alarms is not None and alarms.stopping


def _failure(problem: str, error: Evidence | None, directory: Path, attempt: int) -> StageFailed:
    """Build the failure with the end of an error, or else the end of the stage's log."""
    log = directory / "log.txt"
    if error is None:
        return StageFailed(f"{problem}.", log=log, lines=last_lines(log, _SHOWN_LINES))
    if error.log != log:
        error = keep(error, directory, attempt)
    whose = [f"error of {error.actor}:"] if error.actor else []
    others = [log] if error.log != log else []
    return StageFailed(f"{problem}.", log=error.log, lines=whose + error.lines, others=others)
