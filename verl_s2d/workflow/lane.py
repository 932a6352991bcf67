"""Build stages one after another, on a Ray head of the lane's own.

verl's TransferQueue has one name in a whole Ray cluster, so two stages cannot share one: stages that run side by side
have a head each.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from verl_s2d.platforms.provenance import describe_machine
from verl_s2d.workflow import attempts
from verl_s2d.workflow.failures import Interrupted, StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.external_cluster import GivenCluster
from verl_s2d.workflow.hosts.local_cluster import CLUSTER_MARKER, RayCluster
from verl_s2d.workflow.hosts.process import Launcher, SubprocessLauncher
from verl_s2d.workflow.interruption import Interruption
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.progress import DONE, FAILED, INTERRUPTED, Progress
from verl_s2d.workflow.schedule import Schedule
from verl_s2d.workflow.stage_process import run_attempt
from verl_s2d.workflow.store.manifest import write_manifest
from verl_s2d.workflow.store.repair import discard_broken_remains, require_whole
from verl_s2d.workflow.watch import early_stop
from verl_s2d.workflow.watch.alarm_log import AlarmWatch
from verl_s2d.workflow.watch.watchdog import Limits


class Lane:
    """A launcher and a Ray cluster for one stage at a time.

    Args:
        number: of the lane, from 0.
        run_id: marker of the run's processes.
        environment: of every process of the run.
        launcher: starts processes; by default chosen by the recipe's cluster.warm_start.
    """

    def __init__(
        self,
        number: int,
        plan: Plan,
        run_id: str,
        environment: Mapping[str, str],
        progress: Progress,
        interruption: Interruption,
        launcher: Launcher | None = None,
    ):
        self._plan, self._progress, self._interruption = plan, progress, interruption
        self._environment = environment
        name, ending = (f"{run_id}-{number}", f"-{number}") if number else (run_id, "")
        # /proc shows a fork with its host's environment, so the host carries both markers.
        self._launcher = launcher or choose_launcher(plan, environment | {CLUSTER_MARKER: name}, f"warm{ending}.log")
        self._cluster = self._choose_cluster(name, f"ray{ending}.log")

    def _choose_cluster(self, name: str, log: str) -> RayCluster | GivenCluster:
        context = self._plan.context
        if not os.environ.get("RAY_ADDRESS"):
            return RayCluster(
                context.run_dir,
                name,
                self._launcher,
                self._environment,
                context.device,
                self._plan.ray_demand,
                log,
            )
        return GivenCluster(
            context.run_dir,
            self._launcher,
            self._environment,
            demand=self._plan.ray_demand,
            wait_minutes=context.cluster.wait_minutes,
            note=self._progress.note,
        )

    def work(self, schedule: Schedule, count: int) -> None:
        """Build stages until none is left.

        Args:
            count: number of stages of the whole run, for the progress shown.
        """
        while (taken := schedule.take()) is not None:
            index, node = taken
            try:
                self._build(node, index, count)
            except StageFailed as failure:
                schedule.failed(node, failure)
            else:
                schedule.built(node)

    def close(self) -> None:
        """Stop the cluster."""
        self._cluster.stop()
        self._launcher.close()

    def _build(self, node: Node, index: int, count: int) -> None:
        stage, directory = node.stage, self._plan.context.directory(node)
        directory.mkdir(parents=True, exist_ok=True)
        discard_broken_remains(directory, self._progress.note)
        tries = 1 + self._plan.context.cluster.retries
        for remaining in reversed(range(tries)):
            # A stage that an alarm has stopped is never started again, with or without a result.
            if early_stop.read(directory) is not None or stage.finished_before(node, directory):
                break
            try:
                self._attempt(node, directory, index, count)
                break
            except StageFailed as failure:
                self._cluster.stop()
                if not remaining or early_stop.read(directory) is not None:
                    raise
                self._progress.note(f"{failure.problem} Trying again ({remaining} left).")
        stage.finalize(node, directory)
        seconds, end = attempts.seconds_spent(directory), stage.end(node, directory)
        if early := end.get("until"):
            self._progress.note(f"    {node.name} ended before its maximum: {early['reason']}")
        context = self._plan.context
        write_manifest(
            node,
            directory,
            ledger=stage.ledger(node, directory, seconds),
            seconds=seconds,
            attempts=attempts.count(directory),
            machine=describe_machine(context.device, context.cluster.nodes * context.cluster.gpus_per_node),
            end=end,
        )
        stage.clean(directory)

    def _attempt(self, node: Node, directory: Path, index: int, count: int) -> None:
        stage = node.stage
        require_whole(node, self._plan, self._progress.note)
        node.stage.prepare_resume(node, directory, self._plan.context.cluster, self._progress.note)
        environment = dict(self._environment)
        if on_ray := stage.needs_ray(self._plan.context):
            environment |= self._cluster.environment()
        attempt = attempts.begin(directory)
        cluster = self._plan.context.cluster
        began, outcome = time.monotonic(), FAILED
        self._progress.stage_started(node, index, count, stage.total_steps(node), attempt)
        try:
            command = stage.command(node, self._plan.context, attempt)
            with self._interruption.may_save(directory / "checkpoints" if stage.trains else None):
                run_attempt(
                    node,
                    command,
                    directory,
                    attempt,
                    launcher=self._launcher,
                    environment=environment | dict(command.env),
                    limits=Limits(60 * cluster.stall_minutes, 60 * cluster.step_minutes),
                    alarms=AlarmWatch(node, directory, attempt) if stage.trains else None,
                    progress=self._progress,
                    interruption=self._interruption,
                    workers=self._cluster if on_ray else None,
                )
            stage.finalize(node, directory)
            outcome = DONE
        except (Interrupted, KeyboardInterrupt):
            outcome = INTERRUPTED
            raise
        finally:
            seconds = time.monotonic() - began
            attempts.end(directory, attempt, 0 if outcome == DONE else 1, seconds)
            self._progress.stage_ended(node, seconds, outcome)
        if on_ray and (lingering := self._cluster.settle()):
            self._progress.note(f"{node.name} has ended, but {lingering}; the Ray head was started again")


def choose_launcher(plan: Plan, environment: Mapping[str, str], log: str = "warm.log") -> Launcher:
    """Choose warm starts if the recipe asks for them; by default on Linux, on device cpu, with a local Ray head.

    CUDA libraries set up state at import that need not survive a fork. Workers of a user's cluster are started by that
    cluster.
    """
    wanted = plan.context.cluster.warm_start
    if wanted == "auto":
        wanted = plan.context.device == "cpu" and sys.platform == "linux" and not os.environ.get("RAY_ADDRESS")
    if not wanted:
        return SubprocessLauncher()
    from verl_s2d.workflow.hosts.warm_launcher import WarmLauncher

    return WarmLauncher(environment, plan.context.run_dir / log)
