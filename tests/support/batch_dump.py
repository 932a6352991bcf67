"""Loaded by verl (VERL_USE_EXTERNAL_MODULES) in the processes of a test: `s2d_opd_dump` and `s2d_grpo_dump`, which are
our trainers, and save at their first step every tensor of the batch that the update is about to see."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from wrapt import when_imported

FIELDS = ("prompts", "responses", "response_mask", "advantages", "returns", "rm_scores")
SAMPLED = ("old_log_probs", "ref_log_prob")
KNOWN = ("teacher_ids", "teacher_logprobs")

TRAINER, GRPO_TRAINER = "s2d_opd_dump", "s2d_grpo_dump"


def dumping(to: Path, trainer: str = TRAINER) -> dict[str, str]:
    """verl's options with which a run saves its first batch there."""
    reach = "+ray_kwargs.ray_init.runtime_env.env_vars."
    return {
        "trainer.v1.trainer_mode": trainer,
        f"{reach}VERL_USE_EXTERNAL_MODULES": __name__,
        f"{reach}S2D_BATCH_DUMP": str(to),
    }


@when_imported("verl_s2d.stages.opd.trainer")
def _opd(opd) -> None:
    def more(trainer) -> tuple[str, ...]:
        weights = () if trainer.s2d.problem_weights is None else ("s2d_problem_weight",)
        read = () if trainer.s2d.exact else KNOWN if trainer.s2d.is_loss else SAMPLED
        return (*read, *weights)

    _register(TRAINER, opd.OpdTrainer, more)


@when_imported("verl_s2d.stages.grpo.trainer")
def _grpo(grpo) -> None:
    def more(trainer) -> tuple[str, ...]:
        return (*SAMPLED, *(("s2d_distillation_weights",) if trainer.credited.credit.type == "kdrl" else ()))

    _register(GRPO_TRAINER, grpo.GrpoTrainer, more)


def _register(name: str, trainer: type, more) -> None:
    import transfer_queue as tq
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    @register_trainer(name)
    class DumpingTrainer(trainer):
        def _compute_advantage(self, batch, metrics):
            result = super()._compute_advantage(batch, metrics)
            if self.global_steps == 1:
                fields = [*FIELDS, *more(self)]
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
