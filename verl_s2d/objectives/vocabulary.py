"""Which part of the vocabulary this process holds, and how numbers over all of it are put together."""

from __future__ import annotations

from dataclasses import dataclass

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
        group: the tensor-parallel process group. Every rank calls with the same tokens in the same order, and gives the
            results the same upstream gradients: ranks compute in step.
        first: the first id held here; any id from the vocabulary's real size on where only padding is.
        teacher_first: the same of the teacher's part, where its vocabulary is padded to another size and so divided
            elsewhere (Qwen2.5: 151,936 and 152,064 ids). `first` when None. The teacher's logits then travel to the
            student's shards, a chunk of tokens at a time; a head laid out like the student's saves that.
    """

    parallel = True

    def __init__(self, group: dist.ProcessGroup | None, first: int, teacher_first: int | None = None):
        self.group, self.first = group, first
        self.teacher_first = first if teacher_first is None else teacher_first

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over the group; in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the group; in place."""
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def divide(
        self, rows: int, student_size: int, teacher_size: int, vocab_size: int, masked: bool, device: torch.device
    ) -> tuple[int, Exchange | None, bool]:
        """Who holds what, by asking every rank once.

        Args:
            rows: tokens that take part.
            student_size, teacher_size: ids held here, padding among them.
            vocab_size: real ids of the whole vocabulary.
            masked: logits here may be -inf.

        Returns:
            The number of the student's real ids here; how teacher logits get to where the student's are, None where
            they are there already, on every rank; and whether logits of any rank may be -inf.

        Raises:
            ValueError: on every rank alike, so that none is left waiting: rows or vocab_size differ between ranks, or a
                real id is on no rank or on several.
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
    """Takes the teacher's logits from the ranks that have them to those that hold the same ids of the student.

    Attributes:
        held: the teacher's real ids here.
        send: for each rank, which of them go there.
        receive: for each rank, which of the student's ids here come from there.
    """

    group: dist.ProcessGroup | None
    held: int
    send: tuple[slice, ...]
    receive: tuple[slice, ...]

    @staticmethod
    def between(group: dist.ProcessGroup | None, rank: int, students: list[range], teachers: list[range]) -> Exchange:
        """For this rank of a group, whose student and teacher hold these ids."""
        mine, wanted = teachers[rank], students[rank]
        return Exchange(
            group,
            len(mine),
            tuple(_part(mine, other) for other in students),
            tuple(_part(wanted, other) for other in teachers),
        )

    def __call__(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        """Logits (tokens, held) of the teacher's shard into out, (tokens, real ids of the student's shard)."""
        sent = [logits[:, part].reshape(-1) for part in self.send]
        sizes = [len(out) * (part.stop - part.start) for part in self.receive]
        received = logits.new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(sent), sizes, [len(piece) for piece in sent], group=self.group)
        for part, piece in zip(self.receive, received.split(sizes), strict=True):
            out[:, part] = piece.view(len(out), part.stop - part.start)


def _real_ids(name: str, shards: list[list[int]], vocab_size: int) -> list[range]:
    """Real ids of each rank's (first, size)."""
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
            "pad heads to the vocabulary"
        )
    return held


def _part(ids: range, others: range) -> slice:
    """Where in `ids` those are that are among `others` too; empty when none."""
    start = max(ids.start, others.start)
    stop = max(start, min(ids.stop, others.stop))
    return slice(start - ids.start, stop - ids.start) if stop > start else slice(0, 0)
