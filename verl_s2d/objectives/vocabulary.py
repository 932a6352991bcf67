"""Describe this rank's shard of the vocabulary, and reduce values over all shards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


class WholeVocabulary:
    """The vocabulary of a process that holds every id: reductions do nothing."""

    first = 0
    parallel = False

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values


class VocabularyShard:
    """Ids [first, first + size) of a vocabulary that is sharded over the ranks of a group.

    Args:
        group: the tensor-parallel process group. Ranks compute in step: each calls with the same tokens in the same
            order and back-propagates the same upstream gradients.
        first: the first id on this rank; any id at or above the vocabulary's real size on a rank that holds only
            padding.
        teacher_first: the first id of the teacher's shard, when its vocabulary is padded to another size and therefore
            split at other ids (Qwen2.5: 151,936 and 152,064). `first` when None. When the shards differ, the teacher's
            logits are sent to the student's shards chunk by chunk; padding both heads alike avoids that.
    """

    parallel = True

    def __init__(self, group: dist.ProcessGroup | None, first: int, teacher_first: int | None = None):
        self.group, self.first = group, first
        self.teacher_first = first if teacher_first is None else teacher_first

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Reduce to the elementwise maximum over the group, in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Reduce to the elementwise sum over the group, in place."""
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def divide(
        self, rows: int, student_size: int, teacher_size: int, vocab_size: int, masked: bool, device: torch.device
    ) -> tuple[int, Exchange | None, bool]:
        """Gather all ranks' shards once and check them.

        Args:
            rows: tokens to compare.
            student_size, teacher_size: ids on this rank, padding included.
            vocab_size: real ids of the whole vocabulary.
            masked: logits on this rank may be -inf.

        Returns:
            The number of the student's real ids on this rank; the exchange that brings teacher logits to the student's
            shards, None if all shards are equal; and whether logits on any rank may be -inf.

        Raises:
            ValueError: rows or vocab_size differ between ranks, or a real id is on no rank or on several. Every rank
                raises, so that none is left waiting.
        """
        mine = torch.tensor(
            [rows, vocab_size, self.first, student_size, self.teacher_first, teacher_size, int(masked)], device=device
        )
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(everyone, mine, group=self.group)
        table = torch.stack(everyone).tolist()
        for place, name in enumerate(("tokens", "vocab_size")):
            if len({row[place] for row in table}) > 1:
                raise ValueError(f"{name} differs between the ranks of a group: {[row[place] for row in table]}")
        students = _real_ids("student", [row[2:4] for row in table], vocab_size)
        teachers = _real_ids("teacher", [row[4:6] for row in table], vocab_size)
        rank = dist.get_rank(self.group)
        exchange = None if students == teachers else Exchange.between(self.group, rank, students, teachers)
        return len(students[rank]), exchange, any(row[6] for row in table)


@dataclass(frozen=True)
class Exchange:
    """Sends the teacher's logits to the ranks that hold the same ids of the student.

    Attributes:
        held: number of the teacher's real ids on this rank.
        send: for each rank, the slice of this rank's teacher ids that it gets.
        receive: for each rank, the slice of this rank's student ids that it provides.
    """

    group: dist.ProcessGroup | None
    held: int
    send: tuple[slice, ...]
    receive: tuple[slice, ...]

    @staticmethod
    def between(group: dist.ProcessGroup | None, rank: int, students: list[range], teachers: list[range]) -> Exchange:
        """Plan the exchange of one rank, given the student's and the teacher's ids on every rank."""
        mine, wanted = teachers[rank], students[rank]
        return Exchange(
            group,
            len(mine),
            tuple(_part(mine, other) for other in students),
            tuple(_part(wanted, other) for other in teachers),
        )

    def __call__(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        """Exchange logits of the teacher's shard, (tokens, held), into out, (tokens, the student's real ids here)."""
        sent = [logits[:, part].reshape(-1) for part in self.send]
        sizes = [len(out) * (part.stop - part.start) for part in self.receive]
        received = logits.new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(sent), sizes, [len(piece) for piece in sent], group=self.group)
        for part, piece in zip(self.receive, received.split(sizes), strict=True):
            out[:, part] = piece.view(len(out), part.stop - part.start)


def _real_ids(name: str, shards: list[list[int]], vocab_size: int) -> list[range]:
    """Compute the real ids on each rank from its (first, size)."""
    held = [range(first, max(first, min(first + size, vocab_size))) for first, size in shards]
    end = 0
    for ids in sorted((ids for ids in held if ids), key=lambda ids: ids.start):
        if ids.start != end:
            break
        end = ids.stop
    if end != vocab_size:
        shown = ", ".join(f"[{first}, {first + size})" for first, size in shards)
        raise ValueError(
            f"the {name}'s shards hold ids {shown}: each of the {vocab_size} ids has to be on exactly one rank; "
            "pad heads to the vocabulary's size"
        )
    return held


def _part(ids: range, others: range) -> slice:
    """Return the slice of `ids` that lies in `others` too; empty if none does."""
    start = max(ids.start, others.start)
    stop = max(start, min(ids.stop, others.stop))
    return slice(start - ids.start, stop - ids.start) if stop > start else slice(0, 0)
