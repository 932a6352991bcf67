"""Read `s2d.until` of a verl command, and refuse rules that cannot end it, before anything starts."""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from verl_s2d.errors import UserError
from verl_s2d.recipe.until import SAMPLED_TOKENS, VALIDATION, Until
from verl_s2d.stages.shared.distillation import mapping
from verl_s2d.validation import Refused, validated

KEY = "s2d.until"
_SCHEDULE = {"lr_scheduler_type": "constant", "lr_decay_style": "constant", "lr_warmup_steps_ratio": 0}


def read_until(config: DictConfig, measured: Collection[str]) -> Until | None:
    """Read the section from the configuration of verl's RL trainer; None when it is absent or empty.

    Args:
        measured: what the trainer measures beside sampled tokens and its validation: travel, divergence.

    Raises:
        UserError: not a rule, a rule that can never hold, or a learning rate that follows a schedule over the number of
            steps, which a rule leaves open.
    """
    until = _section(config, "actor_rollout_ref.actor.optim")
    if until is None:
        return None
    every = config.trainer.test_freq
    every = every if isinstance(every, int) and every > 0 else None
    data, steps = config.data, config.trainer.total_training_steps
    try:
        until.require_measured({SAMPLED_TOKENS, *measured, *([VALIDATION] if every else [])})
        if steps is not None:
            tokens = data.train_batch_size * config.actor_rollout_ref.rollout.n * data.max_response_length
            until.require_reachable(steps, validate_every=every, tokens=tokens)
    except Refused as refused:
        raise refused.below(KEY) from None
    return until


def read_warmup_until(config: DictConfig, measured: Collection[str]) -> Until | None:
    """Read the section from the configuration of the warmup, as `read_until` does."""
    until = _section(config, "optim")
    if until is None:
        return None
    try:
        until.require_measured(measured)
        if config.trainer.total_training_steps is not None:
            until.require_reachable(config.trainer.total_training_steps)
    except Refused as refused:
        raise refused.below(KEY) from None
    return until


def _section(config: DictConfig, optim: str) -> Until | None:
    """Read the section alone. A key that is null is not set: a plan's budget may be known only later."""
    if OmegaConf.select(config, KEY) is None:
        return None
    for name, fits in _SCHEDULE.items():
        if (value := OmegaConf.select(config, f"{optim}.{name}")) not in (fits, None):
            raise UserError(
                "a rule that may end the stage leaves the number of steps open, and this schedule needs it",
                key=f"{optim}.{name}",
                value=value,
                remedy=f"set it to {fits}{', and the steps in lr_warmup_steps' if 'warmup' in name else ''}, or leave "
                f"out {KEY} (in a recipe: until, or matched by tokens)",
            )
    rules = {name: value for name, value in mapping(config.s2d.until, KEY).items() if value is not None}
    return validated(Until, rules, key=KEY) if rules else None
