"""Train in verl's worker beside frozen models, and stop after too many consecutive skipped updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack

from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

from verl_s2d.signals.in_verl.aggregation import Aggregate
from verl_s2d.signals.in_verl.full_vocabulary import Computation, FullVocabularyLoss
from verl_s2d.signals.in_verl.health_metrics import divide_quarters
from verl_s2d.signals.in_verl.top_k_loss import TopKLoss
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.shared.distillation import Distillation
from verl_s2d.teachers.frozen_engines import FrozenWorker, distinct
from verl_s2d.teachers.megatron import is_megatron


class NotFiniteError(RuntimeError):
    """Raised after too many consecutive updates with a gradient that is not finite."""


class GuardedWorker(TrainingWorker):
    """Counts consecutive updates that verl skips for a gradient that is not finite, and stops at a limit.

    verl's Megatron engine applies such an update and ruins the weights, so there the first one stops training.

    Args:
        skip_limit: number of consecutive skipped updates after which to stop.
    """

    def __init__(self, config: TrainingWorkerConfig, *, skip_limit: int):
        super().__init__(config)
        self._skip_limit, self._skipped_in_a_row = skip_limit, 0

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """Run verl's training step.

        Raises:
            NotFiniteError: the limit is reached. The last checkpoint is intact: none was written since.
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
    """A guarded worker that trains on a full-vocabulary loss once it has frozen models."""

    def learn_from(
        self,
        frozen: Mapping[str, FrozenWorker],
        settings: Distillation,
        *,
        vocab_size: int,
        aggregate: Aggregate,
        prefix: str,
        own_prompts: frozenset[str] = frozenset(),
    ) -> None:
        """Set the loss to that of the settings' signal.

        Args:
            frozen: the signal's models by role, initialised; none for a signal whose answers the batches bring.
            vocab_size: size of the shared vocabulary without padding.
            aggregate: reduces the loss over tokens.
            prefix: prefix of the logged metrics.
            own_prompts: roles whose models read other prompts than the student.
        """
        self._frozen_engines, self._prefix = [worker.engine for worker in distinct(frozen)], prefix
        computation = Computation(vocab_size, settings.chunk_tokens, settings.materialise_logits, settings.health_top_k)
        common = {"student": self.engine, "aggregate": aggregate, "prefix": prefix}
        if isinstance(settings.signal, TopK):
            self.loss_fn = TopKLoss(settings.signal, computation, **common)
            return
        engines = {role: worker.engine for role, worker in frozen.items()}
        self.loss_fn = FullVocabularyLoss(
            settings.signal,
            computation,
            frozen=engines,
            own_prompts=own_prompts,
            served=tuple(settings.router.models) if settings.router is not None else (),
            **common,
        )

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """Run verl's training step with the frozen models' engines in evaluation mode.

        The flags make verl's engines call the loss on the logits and skip log-probs.
        """
        tu.assign_non_tensor(data, distillation_use_topk=True, distillation_only=True, calculate_entropy=False)
        with ExitStack() as stack:
            for engine in self._frozen_engines:
                stack.enter_context(engine.eval_mode())
            output = super().train_batch(data)
        if output is not None:
            divide_quarters(tu.get(output, "metrics"), self._prefix)
        return output
