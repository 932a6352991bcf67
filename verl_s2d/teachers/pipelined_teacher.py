"""Run a pipelined teacher over the whole mini-batch before the student, and store its last hidden states.

The teacher cannot run inside the student's pipeline schedule: its stages would deadlock on ranks busy with another
micro-batch. Hidden states of a mini-batch fit in memory where its logits would not: hidden size instead of vocabulary,
and under sequence parallelism a part of it on each rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from verl.utils.megatron_utils import unwrap_model
from verl.workers.engine import BaseEngine


class _Kept(NamedTuple):
    """A micro-batch: its token ids, which identify it, and the output embedding's input."""

    ids: torch.Tensor
    hidden: torch.Tensor
    settings: Mapping[str, Any]


class PipelinedTeacher:
    """Hidden states of a Megatron engine's last stage, in the order of the student's schedule.

    Args:
        engine: forward-only, initialised, with as many pipeline stages as the student's.
    """

    def __init__(self, engine: BaseEngine):
        self._engine = engine
        model = unwrap_model(engine.module[0])
        self._head = model.output_layer if model.post_process else None
        self._kept: deque[_Kept] = deque()

    def run(self, batch: TensorDict) -> None:
        """Run the teacher over the batch that the student will train on, in the same micro-batches.

        Collective: every rank takes part.
        """
        self._kept.clear()
        seen: list[tuple[torch.Tensor, Mapping[str, Any]]] = []

        def at_logits(student_logits: torch.Tensor | None = None, data: TensorDict | None = None, **_: Any):
            if student_logits is None:
                return torch.zeros(()), {}
            hidden, settings = seen.pop()
            self._kept.append(_Kept(data["input_ids"].values(), hidden, settings))
            return {}

        with torch.no_grad(), self._keeping(lambda hidden, settings: seen.append((hidden, settings))):
            self._engine.forward_backward_batch(batch, at_logits, forward_only=True)

    def logits(self, micro_batch: TensorDict) -> torch.Tensor:
        """Compute (tokens, V_t) logits of the next micro-batch, this rank's shard of the vocabulary.

        Raises:
            RuntimeError: the student's micro-batches differ from the teacher's.
        """
        ids = micro_batch["input_ids"].values()
        kept = self._kept.popleft() if self._kept else None
        if kept is None or not torch.equal(kept.ids, ids):
            raise RuntimeError("the student's micro-batches are not those that the teacher has seen")
        with torch.no_grad():
            logits, _ = self._head(kept.hidden, **kept.settings)
        return logits.transpose(0, 1).flatten(0, 1)

    @contextmanager
    def _keeping(self, keep: Callable[[torch.Tensor, Mapping[str, Any]], None]) -> Iterator[None]:
        """Replace the head of the last stage: store its input, and return one number per token instead of logits."""
        if self._head is None:
            yield
            return

        def forward(hidden: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, None]:
            keep(hidden, settings)
            ranks = self._head.tp_group.size() if self._head.sequence_parallel else 1
            return hidden.new_zeros(len(hidden) * ranks, hidden.shape[1], 1), None

        self._head.forward = forward
        try:
            yield
        finally:
            del self._head.forward
