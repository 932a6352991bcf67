"""Count the teacher rollouts that a cache holds, and those among them that the warmups read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verl_s2d.stages.shared.batch_settings import rows_read
from verl_s2d.workflow.graph import Node

_WASTE = 0.5
"""Thrown away beyond this share, a cache is worth a warning."""


@dataclass(frozen=True)
class CacheUse:
    """Rollouts of one cache.

    Attributes:
        sampled, read: rows of the cache, and those among them that some warmup reads.
        tokens: of a rollout, at most.
    """

    sampled: int
    read: int
    tokens: int

    @property
    def sampled_tokens(self) -> int:
        """At most, with every rollout at its full length."""
        return self.sampled * self.tokens

    @property
    def read_tokens(self) -> int:
        """As `sampled_tokens`, of the rollouts that are read."""
        return self.read * self.tokens

    @property
    def wasted(self) -> float:
        """Share of the rollouts that nothing reads, from 0 to 1."""
        return 1 - self.read / self.sampled


def cache_use(rollouts: Node, nodes: Iterable[Node], problems: int | None) -> CacheUse | None:
    """Compare what a stage samples with what is read of it; None as long as the number of rollouts is not known.

    Args:
        nodes: of the plan. Warmups on one cache read it in the same order, so the longest of them reads all that any
            of them reads.
        problems: of the slice that is sampled from, None where not known.
    """
    sampled = rollouts.stage.sequences(rollouts, problems)
    if not sampled:
        return None
    readers = [n for n in nodes if (read := n.inputs.get("rollouts")) and read.digest == rollouts.digest]
    wanted = max((rows_read(n.settings) for n in readers), default=0)
    return CacheUse(sampled, min(sampled, wanted), rollouts.settings["response_tokens"])


def waste_warning(rollouts: Node, use: CacheUse) -> str | None:
    """Warn of a cache of which more than half is sampled for nothing."""
    if use.wasted <= _WASTE:
        return None
    return (
        f"{rollouts.name} samples {use.sampled:,} rollouts, of which the warmup reads {use.read:,} "
        f"({use.wasted:.0%} is thrown away): leave stages.rollouts.per_prompt out to sample what is read."
    )
