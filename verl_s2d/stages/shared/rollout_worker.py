"""Run verl's worker of stages 1, 2b and 3 (actor, rollout, reference) in this project's process group."""

from __future__ import annotations

from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from verl_s2d.platforms.process_group import initialize_process_group


class RolloutWorker(ActorRolloutRefWorker):
    """Creates the process group before verl's first engine would."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        initialize_process_group()
        super().init_model()
