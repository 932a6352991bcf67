"""Register the trainer `s2d_grpo`, GRPO with rules that end it, saving on request and credit, in verl's V1 registry."""

from __future__ import annotations

import ray
from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_s2d.sampling.generation_settings import require_writable
from verl_s2d.sampling.in_verl.refills_groups import RefillsGroups
from verl_s2d.sampling.in_verl.samples_groups import SamplesGroups
from verl_s2d.stages.ending.ends_early import EndsEarly
from verl_s2d.stages.grpo.assigns_credit import AssignsCredit
from verl_s2d.stages.grpo.credit_config import measured_by
from verl_s2d.stages.grpo.measures_travel import MeasuresTravel
from verl_s2d.stages.shared.save_on_request import SavesOnRequest
from verl_s2d.stages.shared.sends_tensors import SendsTensors

POLL_SECONDS = 0.05


@register_trainer("s2d_grpo")
class GrpoTrainer(
    AssignsCredit,
    SavesOnRequest,
    EndsEarly,
    MeasuresTravel,
    SamplesGroups,
    RefillsGroups,
    SendsTensors,
    PPOTrainerSync,
):
    """verl's synchronous trainer with two more reasons to stop at the end of a step.

    A rule of `s2d.until` holds, or the trainer was asked to save and stop. With `s2d.credit` the log-probs
    of a frozen teacher change the update.
    """

    def __init__(self, config: DictConfig):
        require_writable(config.actor_rollout_ref.model.path, "actor_rollout_ref.model.path")
        with open_dict(config):
            # verl chooses its replay buffer by comparing the mode with "sync".
            config.trainer.v1.trainer_mode = "sync"
        self.measured = measured_by(config)
        super().__init__(config)
        # verl polls for finished rollouts every two seconds, which is longer than a small step takes.
        self.replay_buffer.poll_interval = min(self.replay_buffer.poll_interval, POLL_SECONDS)

    def _init_resource_pool_mgr(self) -> None:
        """Use the worker that waits for slow storage for actor, rollout and reference."""
        super()._init_resource_pool_mgr()
        if self.credited is not None:
            return
        from verl_s2d.stages.shared.rollout_worker import RolloutWorker

        for role in (Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(RolloutWorker)
