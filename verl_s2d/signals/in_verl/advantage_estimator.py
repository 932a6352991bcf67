"""Register the advantage estimator `s2d_opd` in verl: it returns the signal's advantages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from verl_s2d.errors import UserError
from verl_s2d.signals.signal import AdvantageSignal


@register_adv_est("s2d_opd")
def s2d_opd(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config=None,
    *,
    signal: AdvantageSignal | None = None,
    old_log_probs: torch.Tensor | None = None,
    frozen_log_probs: Mapping[str, torch.Tensor] | None = None,
    fields: Mapping[str, torch.Tensor] | None = None,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a signal's advantages with the interface of verl's estimators.

    Args:
        token_level_rewards: (batch, response), verl's rewards; not read: the frozen models are the only signal.
        response_mask: (batch, response), 1 on sampled tokens.
        config: verl's `algorithm` section; not read.
        signal: computes the advantages.
        old_log_probs: (batch, response) log pi_old of the sampled tokens, float32.
        frozen_log_probs: role -> (batch, response) log-probs of the sampled tokens under that model, float32.
        fields: verl's name -> (batch, response), what the signal reads beside log-probs.

    Returns:
        (advantages, returns), both (batch, response); returns equal advantages.

    Raises:
        UserError: log-probs of frozen models are missing, because a trainer other than `s2d_opd` called it.
    """
    if signal is None or old_log_probs is None or frozen_log_probs is None:
        raise UserError(
            "the advantage estimator s2d_opd got no teacher log-probabilities",
            key="trainer.v1.trainer_mode",
            remedy="run it with trainer.v1.trainer_mode=s2d_opd, whose workers hold the teacher",
        )
    more = {"fields": fields} if signal.reads else {}
    advantages = signal.advantages(old_log_probs, frozen_log_probs, response_mask, **more)
    return advantages, advantages
