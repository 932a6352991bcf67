"""Count the teacher rollouts in a cache and those that warmups read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verl_s2d.stages.shared.batch_settings import rows_read
from verl_s2d.workflow.graph import Node

_WASTE = 0.5
"""Warn if more than this fraction of a cache is unused."""


@dataclass(frozen=True)
class CacheUse:
    """Rollouts of one cache.

    Attributes:
        sampled: rollouts in the cache.
        read: rollouts that some warmup reads.
        tokens: maximum tokens of a rollout.
    """

    sampled: int
    read: int
    tokens: int

    @property
    def sampled_tokens(self) -> int:
        """Bound the sampled tokens: every rollout at its full length."""
        return self.sampled * self.tokens

    @property
    def read_tokens(self) -> int:
        """Bound the tokens that are read: every rollout at its full length."""
        return self.read * self.tokens

    @property
    def wasted(self) -> float:
        """Return the fraction of rollouts that nothing reads, in [0, 1]."""
        return 1 - self.read / self.sampled


def cache_use(rollouts: Node, nodes: Iterable[Node], problems: int | None) -> CacheUse | None:
    """Compare the rollouts that a stage samples with those that are read; None if their number is unknown.

    Args:
        nodes: nodes of the plan. All warmups read a cache in the same order, so the longest one reads every rollout
            that any of them reads.
        problems: number of problems in the slice, or None if unknown.
    """
    sampled = rollouts.stage.sequences(rollouts, problems)
    if not sampled:
        return None
    readers = [n for n in nodes if any(source.digest == rollouts.digest for source in n.inputs.values())]
    wanted = max((rows_read(n.settings) for n in readers), default=0)
    return CacheUse(sampled, min(sampled, wanted), rollouts.settings["response_tokens"])


def waste_warning(rollouts: Node, use: CacheUse) -> str | None:
    """Return a warning if more than half of a cache is unused."""
    if use.wasted <= _WASTE:
        return None
    return (
        f"{rollouts.name} samples {use.sampled:,} rollouts, of which the warmup reads {use.read:,} "
        f"({use.wasted:.0%} is thrown away): leave out stages.rollouts.per_prompt to sample only what is read."
    )
