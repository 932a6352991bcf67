"""Read the batch sizes of a stage: the recipe's, or verl's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.verl_settings.generated import verl_default
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.workflow.graph import Node

TRAIN, MINI = "data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"
N = "actor_rollout_ref.rollout.n"
_TOKENS = {"warmup": "data.max_token_len_per_gpu"}


def batch_setting(node: Node, key: str) -> Any:
    """Look up a key of verl's RL configuration for a node: the recipe's value, or verl's default."""
    chosen = value_of(merged_verl(node), key, verl_default)
    return verl_default(key) if chosen is verl_default else chosen


def micro_batch_tokens(kind: str, longest: int) -> dict[str, int]:
    """Set a micro-batch's tokens per GPU: the maximum of verl's default and two sequences of full length.

    verl asserts that the longest sequence fits.

    Args:
        kind: kind of stage, `grpo`, `opd` or `warmup`.
        longest: maximal tokens of a sequence, prompt and response.
    """
    key = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    return {_TOKENS.get(kind, key): max(verl_default(key), 2 * longest)}


def fitting_batches(chosen: Mapping[str, Any], defaults: Mapping[str, Any], problems: int | None) -> dict[str, int]:
    """Fit the default batch sizes of an RL stage to its slice, where a recipe does not choose them.

    Args:
        chosen: the recipe's keys of verl.
        defaults: the stage's overlay.
        problems: problems in the slice; None when their number is not known yet.

    Returns:
        The batch: the default, or the largest power of two in the slice. The mini-batch: the batch's largest divisor up
        to the default. Empty where the recipe chooses both, or an interpolation.
    """
    fitted: dict[str, int] = {}
    train = value_of(chosen, TRAIN)
    if train is None:
        train = fitted[TRAIN] = min(defaults[TRAIN], 2 ** ((problems or defaults[TRAIN]).bit_length() - 1))
    if value_of(chosen, MINI) is None and isinstance(train, int) and train > 0:
        fitted[MINI] = max(part for part in range(1, min(train, defaults[MINI]) + 1) if train % part == 0)
    return fitted


def require_batch_sizes(node: Node) -> None:
    """Raise UserError unless prompts per step, prompts per update and responses per prompt are positive integers."""
    for key in (TRAIN, MINI, N):
        value = batch_setting(node, key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{node.name}: not a batch size.", key=key, value=value, remedy="Give a positive integer.")


def rows_read(settings: Mapping[str, Any]) -> int:
    """Count the cached rollouts that a warmup with these settings reads: one batch per step.

    Raises:
        UserError: the batch size is not a positive integer.
    """
    batch = value_of(settings["verl"], TRAIN)
    if not isinstance(batch, int) or batch < 1:
        raise UserError("Not a batch size.", key=TRAIN, value=batch, remedy="Give a positive integer.")
    return settings["steps"] * batch


def sequences_per_step(node: Node) -> int:
    """Count the responses that a step samples."""
    return batch_setting(node, TRAIN) * batch_setting(node, N)
