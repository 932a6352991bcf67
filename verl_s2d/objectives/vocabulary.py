"""Which part of the vocabulary this process holds, and how numbers over all of it are put together."""

from __future__ import annotations

import torch
import torch.distributed as dist


class WholeVocabulary:
    """Every id is here."""

    first = 0
    parallel = False

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values


class VocabularyShard:
    """Ids [first, first + size) of a vocabulary that the ranks of a group divide among themselves.

    Args:
        group: the tensor-parallel process group; every rank must call with the same tokens in the same order.
        first: the first id held here.
    """

    parallel = True

    def __init__(self, group: dist.ProcessGroup | None, first: int):
        self.group, self.first = group, first

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over the group; in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the group; in place."""
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values
