"""Put frozen models where verl has its reference policy: settings to refuse, and the roles of workers."""

from __future__ import annotations

import ray
from omegaconf import DictConfig
from verl.trainer.ppo.utils import Role

from verl_s2d.errors import UserError
from verl_s2d.verl_settings.engine_checks import check_weights


def check_reference_is_free(config: DictConfig) -> None:
    """Raise UserError for verl settings that ask for a reference policy, or do not let a teacher run in its place."""
    for key, on in (
        ("actor_rollout_ref.actor.use_kl_loss", config.actor_rollout_ref.actor.use_kl_loss),
        ("algorithm.use_kl_in_reward", config.algorithm.use_kl_in_reward),
        ("distillation.enabled", (config.get("distillation") or {}).get("enabled", False)),
    ):
        if on:
            raise UserError(
                "the teacher takes the place of the reference policy, so this has no other model to ask",
                key=key,
                value=True,
                remedy=f"set {key}=False",
            )
    ref = config.actor_rollout_ref.ref
    check_weights(ref.get("megatron") or {}, "actor_rollout_ref.ref.megatron")
    if not ref.log_prob_use_dynamic_bsz and ref.log_prob_micro_batch_size_per_gpu is None:
        raise UserError(
            "the teacher's forward pass needs a micro-batch size",
            key="actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            value=None,
            remedy="set it (the rollout's log_prob_micro_batch_size_per_gpu is a good value), or use dynamic batches",
        )


def place_worker(trainer, worker: type, *, reference: bool) -> None:
    """Make a worker class that of actor and rollout, after verl's `_init_resource_pool_mgr`.

    Args:
        trainer: derived from verl's PPOTrainer.
        reference: build a reference engine, for a teacher. Without a KL loss verl would build none; with LoRA it would
            use the student without its adapter.
    """
    role = Role.ActorRolloutRef if reference else Role.ActorRollout
    del trainer.role_worker_mapping[Role.ActorRollout]
    trainer.role_worker_mapping[role] = ray.remote(worker)
    trainer.mapping[role] = trainer.mapping.pop(Role.ActorRollout)
