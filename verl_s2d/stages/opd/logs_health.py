"""Log the health of stage 2b in a verl trainer: travel from the start, and the parse rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transfer_queue as tq

from verl_s2d.objectives.travel import travel
from verl_s2d.stages.opd.config import START, OpdConfig
from verl_s2d.stages.opd.health import end_tokens, parse_rate
from verl_s2d.verifiers.registry import by_data_source, extractor_of


class LogsHealth:
    """A mixin before AsksModels and verl's PPOTrainerSync; formulas: objectives.travel, stages.opd.health."""

    s2d: OpdConfig

    def _setup(self) -> None:
        super()._setup()
        model = self.config.actor_rollout_ref.model
        self._ends = end_tokens(model.path, self.tokenizer, trust_remote_code=model.trust_remote_code)

    def _balance_batch(self, batch, metrics: dict, *args, **kwargs):
        """Measure the parse rate, before verl fills the batch up with padding."""
        if self.s2d.parse_rate is not None:
            rate = self._parse_rate(batch)
            metrics.update({} if rate is None else {"s2d/parse_rate": rate})
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _parse_rate(self, batch) -> float | None:
        """Measure the parse rate; prompts from a data source without a verifier are left out."""
        chosen = by_data_source(self.s2d.parse_rate)
        fields = ["responses", *(["data_source"] if chosen else [])]
        found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        sources = list(found["data_source"]) if chosen else [None] * len(batch.keys)
        extractors = {source: extractor_of(self.s2d.parse_rate, source) for source in chosen or [None]}
        read = [
            (response, extractors[source])
            for response, source in zip(found["responses"].unbind(), sources, strict=True)
            if source in extractors
        ]
        responses, extract = [response for response, _ in read], [extractor for _, extractor in read]
        return parse_rate(responses, self._ends, self.tokenizer, extract)

    def _compute_old_log_prob(self, batch, metrics: dict):
        # A loss needs no log-probs, but verl compares them with the sampler's here, and travel reads them.
        read = self.config.actor_rollout_ref.rollout.calculate_log_probs or self.s2d.travel
        return super()._compute_old_log_prob(batch, metrics) if read or not self.s2d.is_loss else batch

    def _log_travel(self, log_probs: Mapping[str, torch.Tensor], mask: torch.Tensor, metrics: dict) -> None:
        """Log the distance from the start, of which log_probs has padded old_log_probs and the start's field."""
        if self.s2d.travel:
            start = log_probs[self._log_prob_fields()[START]]
            metrics["s2d/travel"] = travel(start, log_probs["old_log_probs"], mask)
