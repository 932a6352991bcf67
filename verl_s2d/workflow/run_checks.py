"""What `run` checks, and when."""

from __future__ import annotations

from verl_s2d.errors import UserError
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.preflight import check_plan
from verl_s2d.workflow.progress import Progress
from verl_s2d.workflow.registration import RegistrationProbe
from verl_s2d.workflow.runner import stage_environment


class RunChecks:
    """The runner's `check`: bad input each time; registration once, asked in the background while scripts run and
    answered before the first training stage (without our trainer Stage 2b would only fail after hours of Stage 1)."""

    def __init__(self, plan: Plan, progress: Progress):
        self._plan, self._progress = plan, progress
        self._probe: RegistrationProbe | None = None
        self._told: set[str] = set()

    def __call__(self, final: bool) -> None:
        for warning in check_plan(self._plan):
            if warning not in self._told:
                self._progress.note(f"note: {warning}")
                self._told.add(warning)
        if self._probe is None and any(node.kind == "opd" for node in self._plan.missing()):
            self._probe = RegistrationProbe(stage_environment(self._plan.context.device))
        if final and self._probe is not None:
            registered, detail = self._probe.result()
            if not registered:
                raise UserError(
                    f"verl does not have the trainer of Stage 2b: {detail}",
                    key="registration",
                    remedy="Install verl-s2d into the environment that verl is in; `verl-s2d check` tells more.",
                )

    def __enter__(self) -> RunChecks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._probe is not None:
            self._probe.__exit__()
