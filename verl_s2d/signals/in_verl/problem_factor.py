"""Carry the weight of a rollout's problem through verl's batches, as a factor of its loss or its advantages."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from verl_s2d.objectives.token_weights import expand_to_tokens

PROBLEM_WEIGHT = "s2d_problem_weight"
"""Field of a batch: (rollouts, 1) float32; absent where all problems weigh the same."""


def token_factors(data: TensorDict) -> torch.Tensor | None:
    """Repeat the weight of each rollout's problem on its packed tokens; (tokens,) float32, None without weights."""
    if PROBLEM_WEIGHT not in data:
        return None
    weights, ids = data[PROBLEM_WEIGHT], data["input_ids"]
    weights = weights.values() if weights.is_nested else weights
    tokens = ids.values()
    return expand_to_tokens(weights.flatten().to(tokens.device), ids.offsets(), len(tokens))
