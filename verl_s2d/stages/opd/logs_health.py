"""Log the health of stage 2b in a verl trainer: travel from the start, and the parse rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transfer_queue as tq

from verl_s2d.objectives.travel import travel
from verl_s2d.stages.opd.config import START, OpdConfig
from verl_s2d.stages.opd.health import end_tokens, parse_rate
from verl_s2d.verifiers.registry import extractor_of


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
            found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["responses"])
            extract = extractor_of(self.s2d.parse_rate)
            rate = parse_rate(found["responses"].unbind(), self._ends, self.tokenizer, extract)
            metrics.update({} if rate is None else {"s2d/parse_rate": rate})
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _compute_old_log_prob(self, batch, metrics: dict):
        # A loss needs no log-probs, but verl compares them with the sampler's here, and travel reads them.
        read = self.config.actor_rollout_ref.rollout.calculate_log_probs or self.s2d.travel
        return super()._compute_old_log_prob(batch, metrics) if read or not self.s2d.is_loss else batch

    def _log_travel(self, log_probs: Mapping[str, torch.Tensor], mask: torch.Tensor, metrics: dict) -> None:
        """Log the distance from the start, of which log_probs has padded old_log_probs and the start's field."""
        if self.s2d.travel:
            start = log_probs[self._log_prob_fields()[START]]
            metrics["s2d/travel"] = travel(start, log_probs["old_log_probs"], mask)
