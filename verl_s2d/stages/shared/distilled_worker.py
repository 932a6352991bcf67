"""verl's training worker with a teacher beside it, and with a limit to updates that come to nothing."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import BaseEngine
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

from verl_s2d.objectives.token_weights import kept_tokens
from verl_s2d.signals.aggregation import rollout_lengths
from verl_s2d.signals.full_vocabulary import FullVocabularyLoss
from verl_s2d.teachers.megatron import is_megatron


class NotFiniteError(RuntimeError):
    """Too many updates in a row had a gradient that is not finite."""


class GuardedWorker(TrainingWorker):
    """Counts updates whose gradient is not finite, which verl leaves out, and stops after too many in a row.

    On Megatron verl does not look, and the weights are lost with the first of them: it stops there at once.

    Args:
        skip_limit: updates left out in a row after which to stop.
    """

    def __init__(self, config: TrainingWorkerConfig, *, skip_limit: int):
        super().__init__(config)
        self._skip_limit, self._skipped_in_a_row = skip_limit, 0

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """verl's training step.

        Raises:
            NotFiniteError: the limit is reached. The last checkpoint is good: nothing was written since.
        """
        output = super().train_batch(data)
        if output is not None:
            metrics = tu.get(output, "metrics")
            skipped = not math.isfinite(metrics["grad_norm"])
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
            metrics["skipped_updates"] = Metric(AggregationType.SUM, int(skipped))
            if skipped and is_megatron(self.engine):
                raise NotFiniteError(
                    f"an update with a gradient norm of {metrics['grad_norm']} and a loss of {metrics['loss']} went "
                    "into the weights, which verl's Megatron engine does not prevent; lower the learning rate, and go "
                    "on from the last checkpoint"
                )
            if self._skipped_in_a_row >= self._skip_limit:
                raise NotFiniteError(
                    f"{self._skipped_in_a_row} updates in a row had a gradient norm of {metrics['grad_norm']} and a "
                    f"loss of {metrics['loss']}; lower the learning rate, or raise s2d.skip_limit "
                    f"(now {self._skip_limit})"
                )
        return output


class DistilledWorker(GuardedWorker):
    """A guarded worker that can be given a teacher: from then on it trains on a full-vocabulary loss."""

    def learn_from(self, teacher: BaseEngine, loss: FullVocabularyLoss, keep_tokens: float | None = None) -> None:
        """Train on this loss, with the teacher's engine ready while it is at work.

        Args:
            keep_tokens: the share of each rollout's tokens that the loss keeps, None for all.
        """
        self._teacher, self.loss_fn, self._keep_tokens = teacher, loss, keep_tokens

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """verl's training step. The flags make its engines call the loss on the logits first, and skip log-probs."""
        tu.assign_non_tensor(data, distillation_use_topk=True, distillation_only=True, calculate_entropy=False)
        if self._keep_tokens is not None:
            tu.assign_non_tensor(data, tokens_per_kept=self._tokens_per_kept(data))
        with self._teacher.eval_mode():
            return super().train_batch(data)

    def _tokens_per_kept(self, data: TensorDict) -> float:
        """Response tokens of the whole batch over those that floor(share x tokens) of each rollout leaves."""
        lengths = rollout_lengths(data)
        counts = torch.stack((lengths.sum(), kept_tokens(lengths, self._keep_tokens).sum())).to(get_device_name())
        torch.distributed.all_reduce(counts, group=self.engine.get_data_parallel_group())
        return (counts[0] / counts[1].clamp(min=1)).item()
