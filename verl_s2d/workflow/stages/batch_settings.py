"""Batch sizes of a stage that verl's RL trainer runs: the recipe's, or verl's own where it gives none."""

from __future__ import annotations

from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.overrides import value_of

TRAIN, MINI = "data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"
N = "actor_rollout_ref.rollout.n"
VERL_BATCH_DEFAULTS = {
    TRAIN: 1024,
    MINI: 256,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    N: 1,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": None,
    "actor_rollout_ref.actor.use_dynamic_bsz": False,
}
"""Values of verl 0.9's yaml where neither overlay nor recipe gives one (a contract test compares them)."""


def batch_setting(node: Node, key: str) -> Any:
    """The value of one of VERL_BATCH_DEFAULTS' keys for this node."""
    return value_of(node.settings["verl"], key, VERL_BATCH_DEFAULTS[key])


def require_batch_sizes(node: Node) -> None:
    """Raises UserError unless the node's prompts a step, prompts an update and responses a prompt are such numbers."""
    for key in (TRAIN, MINI, N):
        value = batch_setting(node, key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{node.name}: not a batch size.", key=key, value=value, remedy="Give a positive integer.")


def sequences_per_step(node: Node) -> int:
    """Responses that a step samples."""
    return batch_setting(node, TRAIN) * batch_setting(node, N)
