"""Order the prompts of on-policy updates for a trainer that samples one rollout of each row."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from benchmarks.trl_bridge.bridge_plan import Training


def update_prompts(prompts: Sequence[str], training: Training, seed: int) -> Iterator[str]:
    """Yield the rows of all updates, each prompt of an update as often as it is sampled.

    Each pass over the prompts has a new order; prompts left over at its end, fewer than an update has, are dropped.
    """
    order, waiting = random.Random(seed), []
    for _ in range(training.steps):
        if len(waiting) < training.prompts:
            waiting = order.sample(prompts, len(prompts))
        for prompt in waiting[: training.prompts]:
            yield from [prompt] * training.sampling.samples
        waiting = waiting[training.prompts :]
