"""Divide a step's rollouts among several teachers: one reference pass each, on the rollouts that it serves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class RoutedPass(NamedTuple):
    """One teacher's pass.

    Attributes:
        role: of the teacher.
        rows: the rollouts that it serves.
        asked: the rollouts it is asked about: `rows`, and others whose answers are dropped, so that all ranks have as
            many, in full micro-batches.
        micro_batch: rollouts of a micro-batch on a rank; None where verl sizes micro-batches by tokens.
    """

    role: str
    rows: list[int]
    asked: list[int]
    micro_batch: int | None


def routed_passes(
    groups: Sequence[tuple[str, list[int]]], lengths: Sequence[int], *, ranks: int, micro_batch: int | None
) -> Iterator[RoutedPass]:
    """Plan the passes over a batch.

    The shortest other rollouts fill a pass up: fewer than one for each rank and micro-batch. The micro-batches are as
    equal as they can be, so that no more are needed.

    Args:
        groups: (role, its rows), as Router.groups returns them.
        lengths: tokens of each rollout of the batch, whose number is a multiple of ranks x micro_batch.
        ranks: data-parallel ranks.
        micro_batch: the largest number of rollouts of a micro-batch; None for micro-batches by tokens.
    """
    shortest = sorted(range(len(lengths)), key=lengths.__getitem__)
    for role, rows in groups:
        of_rank, size = math.ceil(len(rows) / ranks), None
        if micro_batch is not None:
            parts = math.ceil(of_rank / micro_batch)
            size = math.ceil(of_rank / parts)
            of_rank = parts * size
        own = set(rows)
        others = (row for row in shortest if row not in own)
        asked = [*rows, *(next(others) for _ in range(of_rank * ranks - len(rows)))]
        yield RoutedPass(role, rows, asked, size)
