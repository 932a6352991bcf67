"""Run the checks of `run` before its stages."""

from __future__ import annotations

from verl_s2d.checks import check_plan
from verl_s2d.checks.composition import CompositionProbe
from verl_s2d.checks.disk_space import check_disk
from verl_s2d.checks.packages import check_packages
from verl_s2d.checks.registration import RegistrationProbe
from verl_s2d.errors import UserError
from verl_s2d.stages.shared.training_stage import TrainingStage
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.progress import Progress
from verl_s2d.workflow.runner import stage_environment


class RunChecks:
    """The runner's `check`: inputs at every call; registration and verl's own checks of every stage once.

    The latter run in the background while scripts run, and are awaited before the first training stage: stage 2b would
    otherwise fail only after hours of stage 1.
    """

    def __init__(self, plan: Plan, progress: Progress):
        self._plan, self._progress = plan, progress
        self._registration: RegistrationProbe | None = None
        self._composition: CompositionProbe | None = None
        self._told: set[str] = set()

    def __call__(self, final: bool) -> None:
        self._tell(check_plan(self._plan))
        missing, environment = self._plan.missing(), stage_environment(self._plan.context.device)
        if self._composition is None and any(isinstance(node.stage, TrainingStage) for node in missing):
            self._composition = CompositionProbe(self._plan, missing, environment)
        if self._registration is None and any(isinstance(node.stage, VerlTrainerStage) for node in missing):
            self._registration = RegistrationProbe(environment)
        if final and self._registration is not None:
            registered, detail = self._registration.result()
            if not registered:
                raise UserError(
                    f"verl does not have our trainers: {detail}",
                    key="registration",
                    remedy="Install verl-s2d into the environment that verl is in; `verl-s2d check` shows more.",
                )
        if final and self._composition is not None:
            settings = self._composition.check()
            self._tell(check_packages(settings, self._plan.context.device))
            check_disk(self._plan, settings)

    def _tell(self, warnings: list[str]) -> None:
        for warning in warnings:
            if warning not in self._told:
                self._progress.note(f"note: {warning}")
                self._told.add(warning)

    def __enter__(self) -> RunChecks:
        return self

    def __exit__(self, *_: object) -> None:
        for probe in (self._registration, self._composition):
            if probe is not None:
                probe.__exit__()
