"""Send engines the tensors of a batch alone: a mixin for verl's RL trainers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transfer_queue as tq


class SendsTensors:
    """A mixin before verl's PPOTrainerSync: passes of the engines read the tensors of a text batch, and nothing else.

    Texts, ids and columns of problems are some twenty Python objects a rollout, which verl would fetch, divide among
    micro-batches and walk through for each of them. Engines read none of these. Those that see images do.
    """

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> Any:
        with self._tensors_of(batch):
            return super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch: Any, metrics: dict) -> Any:
        with self._tensors_of(batch):
            return super()._compute_ref_log_prob(batch, metrics)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        with self._tensors_of(batch):
            return super()._update_actor(batch, metrics)

    @contextmanager
    def _tensors_of(self, batch: Any) -> Iterator[None]:
        """Limit the fields that workers fetch of a batch, while it is with them."""
        if self.processor is not None:
            yield
            return
        all_fields = batch.fields
        # Rows have the same fields, padding too.
        row = tq.kv_batch_get(keys=batch.keys[:1], partition_id=batch.partition_id)
        batch.fields = [name for name, value in row.items() if isinstance(value, torch.Tensor)]
        try:
            yield
        finally:
            batch.fields = all_fields
