"""Build what is missing, in order, resumably. Running again is how to resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Thread

from verl_s2d.platforms.environment import stage_environment
from verl_s2d.platforms.temporary_files import temporary_files_of
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.process import MARKER, Launcher, kill_marked
from verl_s2d.workflow.interruption import Interruption
from verl_s2d.workflow.lane import Lane
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.progress import Progress
from verl_s2d.workflow.schedule import Schedule, preparing
from verl_s2d.workflow.store.repair import verified_missing
from verl_s2d.workflow.store.run_directory import opened, remember, remember_evaluations

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
        with (
            Interruption(plan.context.cluster.grace_seconds, progress.note) as interruption,
            temporary_files_of(run_id) as temporary,
        ):
            check(not any(node.stage.prepares for node in missing))
            runner = _Runner(plan, run_id, temporary, progress, interruption, launcher)
            try:
                return runner.build(missing, check, keep_going)
            except OSError as error:
                # A write to a full disk does not name the file.
                error.filename = error.filename or str(plan.context.run_dir)
                raise
            finally:
                runner.close()


class _Runner:
    """The lanes of a run, and its failures."""

    def __init__(
        self,
        plan: Plan,
        run_id: str,
        temporary: Mapping[str, str],
        progress: Progress,
        interruption: Interruption,
        launcher: Launcher | None,
    ):
        self._run_id, self._progress, self._interruption = run_id, progress, interruption
        environment = {**stage_environment(plan.context.device), **temporary, MARKER: run_id}
        self._lanes = [
            Lane(number, plan, run_id, environment, progress, interruption, launcher)
            for number in range(plan.context.cluster.side_by_side)
        ]

    def build(self, missing: list[Node], check: Check, keep_going: bool) -> list[StageFailed]:
        first, failed = preparing(missing), set[str]()
        failures = self._work(missing, first, failed, keep_going)
        if failures and not keep_going:
            return failures
        if first and len(first) < len(missing):
            check(True)
        others = {node.digest for node in missing} - first
        return failures + self._work(missing, others, failed, keep_going)

    def _work(self, missing: list[Node], chosen: set[str], failed: set[str], keep_going: bool) -> list[StageFailed]:
        """Build the chosen stages: the first lane in this thread, which signals reach, each other in one of its own."""
        stages = {index: node for index, node in enumerate(missing, 1) if node.digest in chosen}
        schedule = Schedule(stages, failed, keep_going, self._progress.note)
        threads = [Thread(target=_work_beside, args=(lane, schedule, len(missing))) for lane in self._lanes[1:]]
        for thread in threads:
            thread.start()
        try:
            self._lanes[0].work(schedule, len(missing))
        except BaseException as error:
            schedule.end(error)
            self._interruption.stop_all()
            raise
        finally:
            for thread in threads:
                # no limit: the stage of the lane has those of its watchdog
                thread.join()
        if schedule.error is not None:
            raise schedule.error
        return schedule.failures

    def close(self) -> None:
        """Stop the lanes and every other process that carries this run's marker."""
        for lane in self._lanes:
            lane.close()
        kill_marked(self._run_id)


def _work_beside(lane: Lane, schedule: Schedule, count: int) -> None:
    try:
        lane.work(schedule, count)
    except BaseException as error:
        schedule.end(error)
