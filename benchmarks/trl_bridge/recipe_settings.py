"""Read the settings of the TRL side from the recipe that our side runs."""

from __future__ import annotations

from typing import Any

from benchmarks.trl_bridge.bridge_plan import BridgePlan, Inputs, Sampling, Training
from verl_s2d.errors import UserError
from verl_s2d.recipe.schema import Recipe
from verl_s2d.recipe.stage_settings import Trained

STAGES = ("teacher_rl", "warmup", "opd", "student_rl")
_ACTOR = "actor_rollout_ref.actor."
_PROMPTS = "data.train_batch_size"
_ROLLOUTS = "actor_rollout_ref.rollout."
_DEFAULTS = {"optim.weight_decay": 0.01, "optim.lr_warmup_steps": 0, "optim.clip_grad": 1.0}
"""verl's defaults (workers/config/optimizer: -1 warmup steps mean none); both sides' Adam has betas 0.9 and 0.999."""


def bridge_plan(recipe: Recipe, inputs: Inputs, seed: int) -> BridgePlan:
    """Translate a recipe's four stages.

    Raises:
        UserError: a stage is missing, or has a setting of verl that is not translated.
    """
    stages = recipe.stages
    sampler = stages.rollouts
    if sampler is None or sampler.per_prompt is None:
        raise UserError(
            "The number of rollouts has to be given.", key="stages.rollouts.per_prompt", remedy="Give a number."
        )
    answers = recipe.evaluation
    return BridgePlan(
        inputs=inputs,
        teacher_rl=_on_policy("teacher_rl", stages.teacher_rl),
        rollouts=Sampling(sampler.per_prompt, sampler.temperature, sampler.top_p),
        warmup=_cached("warmup", stages.warmup),
        opd=_on_policy("opd", stages.opd),
        student_rl=_on_policy("student_rl", stages.student_rl),
        evaluation=Sampling(answers.samples, answers.temperature, answers.top_p),
        response_tokens=recipe.data.response_tokens,
        seed=seed,
    )


def _on_policy(name: str, stage: Trained | None) -> Training:
    stage = _required(name, stage)
    verl: dict[str, Any] = dict(stage.verl)
    rollouts = Sampling(
        verl.pop(f"{_ROLLOUTS}n"),
        verl.pop(f"{_ROLLOUTS}temperature", 1.0),
        verl.pop(f"{_ROLLOUTS}top_p", 1.0),
    )
    mini_batch = verl.pop(f"{_ACTOR}ppo_mini_batch_size")
    if mini_batch != verl[_PROMPTS]:
        raise UserError(
            "The TRL side makes one update a step.",
            key=f"stages.{name}.verl.{_ACTOR}ppo_mini_batch_size",
            value=mini_batch,
            remedy=f"Set it to {_PROMPTS}, {verl[_PROMPTS]}.",
        )
    return _training(name, stage, verl, rollouts, _ACTOR)


def _cached(name: str, stage: Trained | None) -> Training:
    stage = _required(name, stage)
    return _training(name, stage, dict(stage.verl), Sampling(1, 1.0), "")


def _required(name: str, stage: Trained | None) -> Trained:
    if stage is None:
        raise UserError("The row needs this stage.", key=f"stages.{name}", remedy="Give its settings.")
    return stage


def _training(name: str, stage: Trained, verl: dict[str, Any], rollouts: Sampling, prefix: str) -> Training:
    prompts = verl.pop(_PROMPTS)
    rate = verl.pop(f"{prefix}optim.lr")
    optimizer = {key: verl.pop(prefix + key, value) for key, value in _DEFAULTS.items()}
    if verl:
        raise UserError(
            "The TRL side does not translate this setting of verl.",
            key=f"stages.{name}.verl.{next(iter(verl))}",
            value=next(iter(verl.values())),
            remedy="Leave it out, or translate it in benchmarks/trl_bridge/recipe_settings.py.",
        )
    return Training(
        steps=stage.steps,
        save_every=stage.save_every,
        prompts=prompts,
        sampling=rollouts,
        learning_rate=rate,
        warmup_steps=optimizer["optim.lr_warmup_steps"],
        weight_decay=optimizer["optim.weight_decay"],
        clip_grad=optimizer["optim.clip_grad"],
    )
