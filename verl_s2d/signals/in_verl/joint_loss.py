"""Add a distillation term to verl's policy loss, for credits with distillation weights."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import agg_loss, kl_penalty
from verl.utils.metric import Metric
from verl.workers.utils.padding import no_padding_2_padding

WEIGHTS = "s2d_distillation_weights"
"""Field of a batch: (batch, response) coefficient of each token's distillation loss."""


class JointLoss:
    """The loss of verl's policy plus sum_t w_t 0.5 (log pi_S(y_t) - log pi_T(y_t))^2, averaged as verl averages.

    The gradient goes through pi_S of the update. verl has one coefficient for its own KL loss, fixed when the worker
    starts; the weights come with each batch, so they follow a schedule and leave out rollouts. A batch without weights
    has verl's loss.

    Args:
        policy_loss: verl's ppo_loss with its `config`.
    """

    def __init__(self, policy_loss: partial):
        self._policy_loss, self._config = policy_loss, policy_loss.keywords["config"]

    def __call__(self, model_output, data: TensorDict, dp_group=None) -> tuple[torch.Tensor, dict]:
        loss, metrics = self._policy_loss(model_output=model_output, data=data, dp_group=dp_group)
        if WEIGHTS not in data:
            return loss, metrics
        log_probs = no_padding_2_padding(model_output["log_probs"], data)
        fields = data.select("response_mask", "ref_log_prob", WEIGHTS).to_padded_tensor()
        squares = kl_penalty(log_probs, fields["ref_log_prob"], "k2")
        # verl's loss has just set the numbers of this batch in its configuration.
        distillation = agg_loss(
            loss_mat=fields[WEIGHTS] * squares,
            loss_mask=fields["response_mask"].to(bool),
            loss_agg_mode=self._config.loss_agg_mode,
            **self._config.global_batch_info,
        )
        aggregation = metrics["actor/pg_loss"].aggregation
        metrics["distillation_loss"] = Metric(value=distillation, aggregation=aggregation)
        return loss + distillation, metrics
