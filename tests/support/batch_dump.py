"""Loaded by verl (VERL_USE_EXTERNAL_MODULES) in the processes of a test: the trainer `s2d_opd_dump` is the OPD trainer
that also saves, at its first step, every tensor of the batch that the update is about to see."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from wrapt import when_imported

FIELDS = ("prompts", "responses", "response_mask", "advantages", "returns")
SAMPLED = ("old_log_probs", "ref_log_prob")

TRAINER = "s2d_opd_dump"


def dumping(to: Path) -> dict[str, str]:
    """verl's options with which a run saves its first batch there."""
    reach = "+ray_kwargs.ray_init.runtime_env.env_vars."
    return {
        "trainer.v1.trainer_mode": TRAINER,
        f"{reach}VERL_USE_EXTERNAL_MODULES": __name__,
        f"{reach}S2D_BATCH_DUMP": str(to),
    }


@when_imported("verl_s2d.stages.opd.trainer")
def _register(opd) -> None:
    import transfer_queue as tq
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    @register_trainer(TRAINER)
    class DumpingTrainer(opd.OpdTrainer):
        def _compute_advantage(self, batch, metrics):
            result = super()._compute_advantage(batch, metrics)
            if self.global_steps == 1:
                fields = [*FIELDS, *(SAMPLED if not self.s2d.exact else ())]
                data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
                rows = {name: [row.clone() for row in data[name].unbind()] for name in fields}
                torch.save(rows, os.environ["S2D_BATCH_DUMP"])
            return result


BATCH = {
    "data.train_batch_size": 32,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 32,
    "actor_rollout_ref.actor.optim.lr": 1.0e-3,
}
