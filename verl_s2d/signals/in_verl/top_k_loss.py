"""Run the top-k signal as a loss function of verl's engines: the batch brings what is known of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import BaseEngine

from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.top_k import top_k_divergence
from verl_s2d.objectives.vocabulary import VocabularyShard
from verl_s2d.signals.in_verl.aggregation import Aggregate
from verl_s2d.signals.in_verl.full_vocabulary import Computation, FullVocabularyLoss
from verl_s2d.signals.in_verl.problem_factor import token_factors
from verl_s2d.signals.in_verl.routed_rows import Part
from verl_s2d.signals.top_k_kl import TopK

IDS, LOG_PROBS = "teacher_ids", "teacher_logprobs"
"""verl's names of a batch's fields (batch, tokens, k); row t is about token t + 1."""


class TopKLoss(FullVocabularyLoss):
    """Computes the divergence of the student from a teacher known on k ids, in place of the output embedding.

    Args:
        signal, computation, student, aggregate, prefix: as for FullVocabularyLoss; there is no frozen engine.
    """

    shown = ("loss", "student_mass", "teacher_mass")

    def __init__(
        self, signal: TopK, computation: Computation, *, student: BaseEngine, aggregate: Aggregate, prefix: str
    ):
        super().__init__(signal, computation, student=student, frozen={}, aggregate=aggregate, prefix=prefix)

    def _teacher(self, frozen: Mapping[str, Any]) -> None:
        return None

    def _compare(
        self,
        student: torch.Tensor | LinearLogits,
        teacher: None,
        data: TensorDict,
        part: Part,
        lay: Callable[[torch.Tensor], torch.Tensor],
        shard: VocabularyShard | None = None,
    ) -> tuple[torch.Tensor, ...]:
        ids, log_probs = (
            torch.stack([lay(column) for column in data[name].values().unbind(-1)], -1) for name in (IDS, LOG_PROBS)
        )
        # Rows of an embedding that stand for no token; the student has no probability there.
        padding = ids >= self._computation.vocab_size
        weights = lay(self._weights(data))
        with torch.enable_grad():
            loss, student_mass, teacher_mass = top_k_divergence(
                student,
                ids.masked_fill(padding, -1),
                log_probs.masked_fill(padding, float("-inf")),
                objective=self._signal.objective,
                mask=weights,
                vocab_size=self._computation.vocab_size,
                chunk_tokens=self._computation.chunk_tokens,
                shard=shard,
            )
        return loss, student_mass, teacher_mass

    def _reduce(self, model_output: dict[str, torch.Tensor], data: TensorDict) -> tuple[torch.Tensor, dict[str, Any]]:
        values = {name: model_output[name].values() for name in self.shown}
        factors, rows = token_factors(data), self._weights(data) != 0
        weighted = values["loss"] if factors is None else values["loss"] * factors.to(values["loss"].device)
        share, name = data["dp_size"] / max(data["batch_num_tokens"], 1), self._signal.objective
        masses = {"student_mass_on_teacher_top": "student_mass", "teacher_mass_on_own_top": "teacher_mass"}
        metrics = {
            f"{self._prefix}{metric}": Metric(AggregationType.SUM, values[field][rows].detach().sum() * share)
            for metric, field in ({name: "loss"} | masses).items()
        }
        largest = values["loss"][rows].detach().max() if bool(rows.any()) else 0.0
        metrics[f"{self._prefix}{name}_max"] = Metric(AggregationType.MAX, largest)
        tokens = Metric(AggregationType.SUM, int(rows.sum()) * data["dp_size"])
        return self._aggregate(weighted, data), metrics | {f"{self._prefix}teacher_scored_tokens": tokens}
