"""Run an exact signal as a loss function of verl's engines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import BaseEngine

from verl_s2d.errors import UserError
from verl_s2d.objectives.divergence import Divergence, divergence
from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits
from verl_s2d.objectives.overlap import TopKHealth, top_k_health
from verl_s2d.objectives.vocabulary import VocabularyShard
from verl_s2d.signals.in_verl.aggregation import Aggregate, tokens_per_kept
from verl_s2d.signals.in_verl.health_metrics import health_metrics
from verl_s2d.signals.in_verl.kept_tokens import KeptTokens
from verl_s2d.signals.in_verl.problem_factor import token_factors
from verl_s2d.signals.in_verl.routed_rows import Part, TeachersOfRows
from verl_s2d.signals.signal import LossSignal
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.teachers.lm_head_hook import HeadSeam, has_plain_head
from verl_s2d.teachers.megatron import in_sharded_layout, is_megatron, vocabulary_shard
from verl_s2d.teachers.token_layout import in_logits_layout, next_tokens, uniform_temperature

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Computation:
    """Settings of a divergence's computation; none of them changes its value.

    Attributes:
        vocab_size: real size of the shared vocabulary.
        chunk_tokens: tokens worked on at a time; None for a default.
        materialise_logits: let the engine make the student's logits instead of working from hidden states and head.
        health_top_k: log the overlap of the two top-k sets (objectives.overlap); costs a second pass over the logits.
    """

    vocab_size: int
    chunk_tokens: int | None = None
    materialise_logits: bool = False
    health_top_k: int | None = None


# Results that the engine passes on for each token: the loss, then values that are only logged. `_at_head` adds a one.
_SHOWN = ("loss", "kept_q3", *Divergence._fields, *TopKHealth._fields)


class FullVocabularyLoss:
    """Computes a signal's divergence of student and teacher, as a loss function of verl's engines.

    An engine runs a micro-batch's forward pass, calls the loss with the model's logits, and later calls it again for
    the scalar. The divergence is computed at the output embedding: what the model returns as "logits" are the per-token
    results, and no logits exist. With materialise_logits, on Megatron, or for a model that changes its logits after the
    matrix product, the divergence is computed from the engine's logits; on Megatron these are a vocabulary shard.

    Args:
        signal: defines the divergence and the teacher.
        computation: settings of the computation.
        student: initialised engine.
        frozen: role -> initialised forward-only engine.
        aggregate: per-token values and micro-batch -> this rank's share of the loss.
        prefix: prefix of the metrics' names.
        own_prompts: roles whose models read other prompts than the student (teachers.own_prompt).
        served: roles in `frozen` that take the teacher's place by data source (teachers.router).
    """

    shown: ClassVar[tuple[str, ...]] = _SHOWN

    def __init__(
        self,
        signal: LossSignal | TopK,
        computation: Computation,
        *,
        student: BaseEngine,
        frozen: Mapping[str, BaseEngine],
        aggregate: Aggregate,
        prefix: str,
        own_prompts: frozenset[str] = frozenset(),
        served: Sequence[str] = (),
    ):
        self._signal, self._computation, self._aggregate, self._prefix = signal, computation, aggregate, prefix
        self._sharded = is_megatron(student)
        # verl's own setting; its Megatron configuration has none.
        self._compiled = not self._sharded and student.engine_config.use_torch_compile
        self._linear = not (computation.materialise_logits or self._sharded) and all(
            has_plain_head(engine.module, engine.model_config.hf_config) for engine in (student, *frozen.values())
        )
        self._frozen = TeachersOfRows(frozen, served, linear=self._linear, own_prompts=own_prompts)
        for teachers in self._frozen.all:
            teachers.precede(student, self)
        self._kept = None if signal.keep_tokens is None else KeptTokens(signal, student, self)
        if self._linear:
            self._stand_in(student)
        elif not (computation.materialise_logits or self._sharded):
            _logger.warning(
                "a model's logits are not hidden states times output embedding: materialising both models' logits"
            )

    def _stand_in(self, student: BaseEngine) -> None:
        """Replace the head in every forward pass of the student's engine with this loss."""
        seam, step = HeadSeam(student.module), student.forward_step

        def forward_step(micro_batch: TensorDict, loss_function: Any, forward_only: bool):
            def at_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
                return self._at_head(micro_batch, hidden, weight, bias)

            with seam.using(at_head) if loss_function is self else nullcontext():
                return step(micro_batch, loss_function, forward_only)

        student.forward_step = forward_step

    def __call__(
        self, *, data: TensorDict, student_logits=None, model_output=None, dp_group=None, data_format=None, **_: Any
    ):
        if student_logits is None:
            return self._reduce(model_output, data)
        shown = student_logits.flatten(0, 1)
        results = self._read(shown, data) if self._linear else self._from_logits(shown, data, data_format)
        return {
            name: values.unflatten(0, student_logits.shape[:2])
            for name, values in zip(self.shown, results, strict=True)
        }

    def _at_head(
        self, micro_batch: TensorDict, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compare in place of the head; (batch, tokens, H) -> (batch, tokens, results and a one)."""
        packs = tu.get_non_tensor_data(micro_batch, key="use_remove_padding", default=True)
        temperature, tokens = uniform_temperature(micro_batch), hidden.flatten(0, 1)
        padded = None if packs else hidden.shape[1]
        data = micro_batch.to(hidden.device)

        def lay(packed: torch.Tensor) -> torch.Tensor:
            return in_logits_layout(packed, data, len(tokens), padded=padded)

        def compare(part: Part, frozen: Mapping[str, LinearLogits]) -> tuple[torch.Tensor, ...]:
            student = LinearLogits(part.of(tokens), weight, bias, temperature=temperature)
            at_temperature = {role: replace(logits, temperature=temperature) for role, logits in frozen.items()}
            return self._compare(student, self._teacher(at_temperature), data, part, lay)

        results = self._ask(micro_batch, tokens, padded, lay, compare)
        return torch.stack((*results, torch.ones_like(results[0])), -1).unflatten(0, hidden.shape[:2])

    def _from_logits(self, logits: torch.Tensor, data: TensorDict, data_format: str | None) -> tuple[torch.Tensor, ...]:
        def lay(packed: torch.Tensor) -> torch.Tensor:
            return in_logits_layout(packed, data, len(logits), padded=None)

        def compare(part: Part, frozen: Mapping[str, GivenLogits]) -> tuple[torch.Tensor, ...]:
            teacher, student = self._teacher(frozen), part.of(logits)
            if self._sharded:
                shard = vocabulary_shard(logits.shape[-1], logits.shape[-1] if teacher is None else teacher.vocab_size)
                return self._compare(
                    student, teacher, data, part, lambda packed: in_sharded_layout(packed, data, data_format), shard
                )
            return self._compare(student, teacher, data, part, lay)

        return self._ask(data, logits, None, lay, compare)

    def _ask(
        self,
        micro_batch: TensorDict,
        tokens: torch.Tensor,
        padded: int | None,
        lay: Callable[[torch.Tensor], torch.Tensor],
        compare: Callable[[Part, Mapping[str, Any]], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        """Compare each teacher's part of the micro-batch; results in the layout of its logits, (len(tokens),)."""
        of_parts = []
        for part in self._frozen.parts(micro_batch, padded, tokens.device):
            results = part.frozen.consult(part.data, partial(compare, part), lay=lay)
            of_parts.append([part.placed(values, len(tokens)) for values in results])
        # A token is in one part, and zero in the others.
        return tuple(sum(others, first) for first, *others in zip(*of_parts, strict=True))

    def _teacher(
        self, frozen: Mapping[str, GivenLogits | LinearLogits]
    ) -> GivenLogits | LinearLogits | ComposedLogits | None:
        """Return the teacher's logits, None where the batch brings what is known of them."""
        return self._signal.teacher(frozen)

    def _compare(
        self,
        student: torch.Tensor | LinearLogits,
        teacher: GivenLogits | LinearLogits | ComposedLogits,
        data: TensorDict,
        part: Part,
        lay: Callable[[torch.Tensor], torch.Tensor],
        shard: VocabularyShard | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Compute the results of _SHOWN, each (tokens of the part,), zero where no response token is predicted.

        Args:
            data: the whole micro-batch.
            lay: moves values of packed tokens to the positions of these tokens' logits.
        """
        weights, ids = part.of(lay(self._weights(data))), part.of(lay(next_tokens(data)))
        if not part.counts:
            weights = torch.zeros_like(weights)
        # Metrics count the tokens of every problem, also of one that weighs nothing.
        factors = token_factors(data)
        weighted = weights if factors is None else weights * part.of(lay(factors))
        settings = {
            "sampled_ids": ids,
            "vocab_size": self._computation.vocab_size,
            "chunk_tokens": self._computation.chunk_tokens,
            "compiled": self._compiled,
            "shard": shard,
        }
        options = self._signal.divergence_options()
        if self._kept is not None and self._kept.measuring:
            results = divergence(student, teacher, mask=weights, objective="reverse_kl", **settings)
            ranked, ranks_by = results, self._kept.ranks_by
            if ranks_by != "reverse_kl":
                ranked = divergence(student, teacher, mask=weights, objective=ranks_by, **settings)
            self._kept.record(part.data, results, ranked.divergence, weights != 0)
            return (torch.zeros_like(weights),) * len(_SHOWN)
        # The frozen engines run without gradients; the objective does not.
        with torch.enable_grad():
            if self._kept is None:
                results = divergence(student, teacher, mask=weights, weights=weighted, **options, **settings)
                loss, q3 = results.divergence, torch.zeros_like(weights)
            else:
                results, kept, q3 = self._kept.choose(part.data, part.padded)
                scale = part.of(lay(self._aggregate.kept_scale(data, self._signal.keep_tokens)))
                chosen = {"mask": weights * kept, "weights": weighted * scale * kept}
                loss = divergence(student, teacher, **chosen, **options, **settings).divergence
            health = self._health(student, teacher, weights)
        # Detached, or the backward pass would propagate zero gradients through them.
        return loss, q3, *(values.detach() for values in results), *health

    def _health(self, student, teacher, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._computation.health_top_k is None:
            return (torch.zeros_like(weights),) * len(TopKHealth._fields)
        return top_k_health(
            student,
            teacher,
            k=self._computation.health_top_k,
            mask=weights,
            vocab_size=self._computation.vocab_size,
            chunk_tokens=self._computation.chunk_tokens,
        )

    def _weights(self, micro_batch: TensorDict) -> torch.Tensor:
        """Differentiate the loss by each packed token's divergence; (tokens,), zero where no response is predicted."""
        tokens = micro_batch["input_ids"].values()
        zeros = torch.zeros(len(tokens), device=tokens.device, requires_grad=True)
        with torch.enable_grad():
            return torch.autograd.grad(self._aggregate(zeros, micro_batch), zeros)[0]

    def _read(self, shown: torch.Tensor, data: TensorDict) -> tuple[torch.Tensor, ...]:
        """Undo the engine's division by the temperature, which treats the results as logits.

        Padding that Ulysses appends to a packed micro-batch has a temperature of 1.
        """
        temperature = shown.new_full((len(data["input_ids"].values()),), uniform_temperature(data))
        temperature = in_logits_layout(temperature, data, len(shown), padded=None, fill=1.0)
        *results, one = (shown * temperature.unsqueeze(-1)).unbind(-1)
        if not torch.allclose(one, torch.ones_like(one), rtol=1e-5):
            raise UserError(
                "the model changes its logits after the output embedding, so hidden states and head do not give them",
                key="s2d.materialise_logits",
                value=False,
                remedy="set s2d.materialise_logits=True",
            )
        return tuple(results)

    def _reduce(self, model_output: dict[str, torch.Tensor], data: TensorDict) -> tuple[torch.Tensor, dict[str, Any]]:
        if self._kept is not None and self._kept.measuring:
            return torch.zeros(()), {}
        values, keep = {name: model_output[name].values() for name in _SHOWN}, self._signal.keep_tokens
        scale = 1.0 if keep is None else self._aggregate.kept_scale(data, keep).to(values["loss"].device)
        if (factors := token_factors(data)) is not None:
            scale = scale * factors.to(values["loss"].device)
        loss = self._aggregate(values["loss"] * scale, data)
        rows = self._weights(data) != 0
        share = data["dp_size"] / max(data["batch_num_tokens"], 1)
        name = self._signal.objective
        logged = {name: "divergence"} | {
            field: field for field in ("student_entropy", "teacher_entropy", "top1_agreement")
        }
        metrics = {
            f"{self._prefix}{metric}": Metric(AggregationType.SUM, values[field][rows].sum() * share)
            for metric, field in logged.items()
        }
        if self._computation.health_top_k is not None:
            metrics |= health_metrics(values, rows, data, share, self._prefix)
        # With kept tokens `divergence` is the measured reverse KL.
        apart = keep is not None and name != "reverse_kl"
        loss_or_all = "loss" if apart or name == "jsd" else "divergence"
        largest = values[loss_or_all][rows].max() if bool(rows.any()) else 0.0
        metrics[f"{self._prefix}{name}_max"] = Metric(AggregationType.MAX, largest)
        if keep is not None:
            share_of_kept = share * tokens_per_kept(data)
            q3 = values["kept_q3"][rows].sum() * share_of_kept
            metrics[f"{self._prefix}kept_q3_share"] = Metric(AggregationType.SUM, q3)
        if apart:
            # Tokens that were not kept have a loss of 0.
            metrics[f"{self._prefix}reverse_kl"] = metrics[f"{self._prefix}{name}"]
            average = values["loss"][rows].sum() * share_of_kept
            metrics[f"{self._prefix}{name}"] = Metric(AggregationType.SUM, average)
        elif name == "jsd":
            # On tokens that the student sampled, log p_S - log p_T estimates the reverse KL: comparable across signals.
            ratio = (values["student_log_prob"] - values["teacher_log_prob"])[rows]
            metrics[f"{self._prefix}reverse_kl"] = Metric(AggregationType.SUM, ratio.sum() * share)
        of_teachers = {"reverse_kl" if apart else name: "divergence", "teacher_entropy": "teacher_entropy"}
        if self._computation.health_top_k is not None:
            of_teachers["overlap_ratio"] = "overlap_ratio"
        of_teachers = {metric: values[field] for metric, field in of_teachers.items()}
        metrics |= self._frozen.sums(data, rows, of_teachers, share, self._prefix)
        tokens = Metric(AggregationType.SUM, int(rows.sum()) * data["dp_size"])
        return loss, metrics | {f"{self._prefix}teacher_scored_tokens": tokens}
