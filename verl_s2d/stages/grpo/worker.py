"""Run the teacher of a credit in verl's workers, in place of the reference policy."""

from __future__ import annotations

from functools import partial

from verl.single_controller.base.decorator import Dispatch, register

from verl_s2d.signals.in_verl.joint_loss import JointLoss
from verl_s2d.stages.grpo.credit_config import read_credit_settings
from verl_s2d.stages.shared.rollout_worker import RolloutWorker
from verl_s2d.teachers.frozen_engines import FrozenWorker


class CreditWorker(RolloutWorker):
    """Actor, rollout and teacher in one worker. Reads `s2d` from the actor_rollout_ref section."""

    def __init__(self, config, role: str, **kwargs):
        super().__init__(config=config, role=role, **kwargs)
        self.ref_worker_cls = partial(FrozenWorker, model=read_credit_settings(config.s2d).teacher)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        self.actor.set_loss_fn(JointLoss(self.loss_fn))
