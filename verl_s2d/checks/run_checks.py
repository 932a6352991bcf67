"""Run the checks of `run` before its stages."""

from __future__ import annotations

from verl_s2d.checks import check_plan
from verl_s2d.checks.disk_space import check_disk
from verl_s2d.checks.packages import check_packages
from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.stages.shared.training_stage import TrainingStage
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.progress import Progress


class RunChecks:
    """The runner's `check`: inputs at every call; registration and verl's own checks of every stage once.

    The latter run in the background while scripts run, and are awaited before the first training stage: stage 2b would
    otherwise fail only after hours of stage 1.
    """

    def __init__(self, plan: Plan, progress: Progress):
        self._plan, self._progress = plan, progress
        self._verl: VerlProbe | None = None
        self._told: set[str] = set()

    def __call__(self, final: bool) -> None:
        self._tell(check_plan(self._plan))
        missing, device = self._plan.missing(), self._plan.context.device
        if self._verl is None and any(isinstance(node.stage, TrainingStage) for node in missing):
            self._verl = VerlProbe(device, stage_environment(device), self._plan, missing)
        if final and self._verl is not None:
            registered, detail = self._verl.registration()
            if not registered:
                raise UserError(
                    f"verl does not have our trainers: {detail}",
                    key="registration",
                    remedy="Install verl-s2d into the environment that verl is in; `verl-s2d check` shows more.",
                )
            settings = self._verl.stages()
            self._tell(check_packages(settings, device))
            check_disk(self._plan, settings)

    def _tell(self, warnings: list[str]) -> None:
        for warning in warnings:
            if warning not in self._told:
                self._progress.note(f"note: {warning}")
                self._told.add(warning)

    def __enter__(self) -> RunChecks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._verl is not None:
            self._verl.__exit__()
