"""Build what is missing, in order, resumably. Running again is how to resume."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from verl_s2d.platforms.environment import device_environment
from verl_s2d.platforms.provenance import describe_machine
from verl_s2d.workflow import attempts
from verl_s2d.workflow.failures import Interrupted, StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.external_cluster import GivenCluster
from verl_s2d.workflow.hosts.local_cluster import CLUSTER_MARKER, RayCluster
from verl_s2d.workflow.hosts.process import MARKER, Launcher, SubprocessLauncher, kill_marked
from verl_s2d.workflow.interruption import Interruption
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.progress import DONE, FAILED, INTERRUPTED, Progress
from verl_s2d.workflow.stage_process import run_attempt
from verl_s2d.workflow.store.manifest import write_manifest
from verl_s2d.workflow.store.repair import discard_broken_remains, require_whole, verified_missing
from verl_s2d.workflow.store.run_directory import opened, remember, remember_evaluations
from verl_s2d.workflow.watch import early_stop
from verl_s2d.workflow.watch.alarm_log import AlarmWatch
from verl_s2d.workflow.watch.watchdog import Limits

Check = Callable[[bool], None]
"""A check that raises UserError on bad input. Its argument is True when training comes next: no check may then be left
for later."""


def run_plan(
    plan: Plan,
    progress: Progress,
    *,
    launcher: Launcher | None = None,
    check: Check = lambda final: None,
    keep_going: bool = False,
) -> list[StageFailed]:
    """Build every missing stage of the plan.

    Args:
        launcher: starts processes; by default chosen by the recipe's cluster.warm_start.
        check: called before the first stage, and again with True once the preparation stages have made their data;
            never between training stages.
        keep_going: after a failure, build the stages that do not depend on the failed one.

    Returns:
        The failures (empty: everything is built).

    Raises:
        UserError: bad input, or a run directory that is in use or was not made by verl-s2d.
        Interrupted: Ctrl-C or SIGTERM; the running stage has been stopped. After SIGTERM it has saved its last step, if
            the time sufficed.
    """
    with opened(plan.context.run_dir, plan.recipe.name) as run_id:
        if all(row.name in plan.recipe.row_names for row in plan.rows):
            chosen = zip(*((row.name, row.seed) for row in plan.rows), strict=True)
            remember(plan.context.run_dir, plan.recipe.origin, *chosen, plan.facts())
        else:
            # Evaluations of single models are not rows of a comparison, but `gc` has to keep their results.
            remember_evaluations(plan.context.run_dir, (row.target.label for row in plan.rows))
        missing = verified_missing(plan, progress.note)
        if not missing:
            return []
        leftovers = kill_marked(run_id)
        if leftovers:
            progress.note(f"stopped {leftovers} processes left behind by a run that was killed")
        with Interruption(plan.context.cluster.grace_seconds, progress.note) as interruption:
            check(not any(node.stage.prepares for node in missing))
            runner = _Runner(plan, run_id, progress, interruption, launcher)
            try:
                return runner.build(missing, check, keep_going)
            except OSError as error:
                # A write to a full disk does not name the file.
                error.filename = error.filename or str(plan.context.run_dir)
                raise
            finally:
                runner.close()


class _Runner:
    """State of a run: its cluster, its environment, its failures."""

    def __init__(
        self, plan: Plan, run_id: str, progress: Progress, interruption: Interruption, launcher: Launcher | None
    ):
        self._plan, self._run_id, self._progress, self._interruption = plan, run_id, progress, interruption
        self._environment = stage_environment(plan.context.device) | {MARKER: run_id}
        # /proc shows a fork with its host's environment, so the host carries both markers.
        self._launcher = launcher or choose_launcher(plan, self._environment | {CLUSTER_MARKER: run_id})
        self._cluster = self._choose_cluster()

    def _choose_cluster(self) -> RayCluster | GivenCluster:
        context = self._plan.context
        if not os.environ.get("RAY_ADDRESS"):
            return RayCluster(
                context.run_dir,
                self._run_id,
                self._launcher,
                self._environment,
                context.device,
                self._plan.ray_demand,
            )
        return GivenCluster(
            context.run_dir,
            self._launcher,
            self._environment,
            demand=self._plan.ray_demand,
            wait_minutes=context.cluster.wait_minutes,
            note=self._progress.note,
        )

    def build(self, missing: list[Node], check: Check, keep_going: bool) -> list[StageFailed]:
        failures: list[StageFailed] = []
        failed: set[str] = set()
        prepared, checked = False, not any(node.stage.prepares for node in missing)
        for index, node in enumerate(missing, 1):
            if any(source.digest in failed for source in node.inputs.values()):
                failed.add(node.digest)
                self._progress.note(f"[{index}/{len(missing)}] {node.name} left out: it needs a stage that failed")
                continue
            prepared = prepared or not node.stage.prepares
            if prepared and not checked:
                check(True)
                checked = True
            try:
                self._build(node, index, len(missing))
            except StageFailed as failure:
                failures.append(failure)
                failed.add(node.digest)
                self._progress.note(str(failure))
                if not keep_going:
                    break
        return failures

    def close(self) -> None:
        """Stop the cluster and every other process that carries this run's marker."""
        self._cluster.stop()
        self._launcher.close()
        kill_marked(self._run_id)

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


def choose_launcher(plan: Plan, environment: Mapping[str, str]) -> Launcher:
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

    return WarmLauncher(environment, plan.context.run_dir / "warm.log")


def stage_environment(device: str) -> dict[str, str]:
    """Build the environment of a run's processes: this process's, and what verl, torch and vLLM need on the device."""
    # Unbuffered: a log that waits for a full buffer would make a working stage look stalled.
    return {**os.environ, "PYTHONUNBUFFERED": "1", **device_environment(device)}
