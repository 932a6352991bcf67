"""verl keys that the workflow computes, so that a recipe must not set them, and how to say the same in a recipe."""

from __future__ import annotations

from verl_s2d.errors import UserError
from verl_s2d.recipe.schema import Recipe

_SLICE = "Choose the data under `data:`; which slice a stage reads follows from the row."
_MODEL = "Set `student:` or `teacher:`; which model a stage starts from follows from the row."
_STEPS = "Set `steps:` of the stage."
_STAGE = "Leave it out: every stage keeps its checkpoints in its own directory, and resumes from them."
_VERIFIER = "Set `verifier:` of the recipe."
_SEED = "Set `seeds:` of the recipe."
_CLUSTER = "Set it under `cluster:`."
_OBJECTIVE = "Set `objective:` and `beta:` of stages.opd."
_TRUST = "Set `trust_remote_code: true` under `student:` or `teacher:`, whose code it is."

COMPUTED_KEYS = {
    "actor_rollout_ref.model.path": _MODEL,
    "model.path": _MODEL,
    "s2d.teacher.path": _MODEL,
    "actor_rollout_ref.model.trust_remote_code": _TRUST,
    "model.trust_remote_code": _TRUST,
    "s2d.teacher.trust_remote_code": _TRUST,
    "s2d.beta": _OBJECTIVE,
    "s2d.objective": _OBJECTIVE,
    "s2d.token_budget": "Add a row under `matched:` instead.",
    "data.train_files": _SLICE,
    "data.val_files": "Set data.validation.",
    "data.max_prompt_length": "Set data.prompt_tokens.",
    "data.max_response_length": "Set data.response_tokens; stage 2b has its own, stages.opd.response_tokens.",
    "data.apply_chat_template_kwargs": "Set data.chat_template.",
    "data.seed": _SEED,
    "trainer.seed": _SEED,
    "actor_rollout_ref.actor.data_loader_seed": _SEED,
    "actor_rollout_ref.rollout.seed": _SEED,
    "trainer.total_training_steps": _STEPS,
    "trainer.total_epochs": _STEPS,
    "trainer.save_freq": "Set `save_every:` of the stage.",
    "s2d.save_minutes": "Set `save_minutes:` of the stage.",
    "trainer.default_local_dir": _STAGE,
    "trainer.resume_mode": _STAGE,
    "actor_rollout_ref.actor.checkpoint.save_contents": _STAGE,
    "trainer.v1.trainer_mode": "Leave it out: it is what makes the stage the stage.",
    "trainer.val_before_train": "Leave it out: evaluation is a stage of its own.",
    "trainer.test_freq": "Set `validate_every:` of stages 1 and 3; evaluation is a stage of its own.",
    "trainer.n_gpus_per_node": _CLUSTER,
    "trainer.nnodes": _CLUSTER,
    "reward.custom_reward_function.path": _VERIFIER,
    "reward.custom_reward_function.name": _VERIFIER,
    "custom_reward_function.path": _VERIFIER,
    "hydra.run.dir": _STAGE,
}
"""Dotted key without prefix -> what to do instead."""


def check_reserved_keys(recipe: Recipe) -> None:
    """Raise UserError for a key below `verl:` of a stage that the workflow computes."""
    for name, stage in recipe.stages:
        for key, value in getattr(stage, "verl", {}).items():
            if remedy := COMPUTED_KEYS.get(bare_key(key)):
                raise UserError(
                    "This key is computed by the workflow.", key=f"stages.{name}.verl.{key}", value=value, remedy=remedy
                )


def bare_key(key: str) -> str:
    """A dotted key without hydra's `+`, `++` or `~`."""
    return key.lstrip("+~")
