"""The advantage estimator `s2d_opd` in verl's registry."""

from __future__ import annotations

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from verl_s2d.errors import UserError
from verl_s2d.objectives.opd import sampled_token_advantage


@register_adv_est("s2d_opd")
def s2d_opd(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config=None,
    *,
    teacher_log_probs: torch.Tensor | None = None,
    old_log_probs: torch.Tensor | None = None,
    beta: float = 1.0,
    whiten: bool = False,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """On-policy distillation as a dense advantage, A_t = beta (log pi_T(y_t|s_t) - log pi_old(y_t|s_t)).

    Paper (arXiv 2605.12483), implicit reward of OPD. Detached, per token, response-masked, not group-normalised.

    Args:
        token_level_rewards: (batch, response), verl's rewards; not read: the teacher is the only signal.
        response_mask: (batch, response), 1 on sampled tokens.
        config: verl's `algorithm` section; not read.
        teacher_log_probs: (batch, response) log pi_T of the sampled tokens, float32.
        old_log_probs: (batch, response) log pi_old of the sampled tokens, float32.
        beta: scale of the advantage.
        whiten: normalise to zero mean and unit variance over the batch's response tokens.

    Returns:
        (advantages, returns), both (batch, response); returns equal advantages.

    Raises:
        UserError: no teacher log-probs, because another trainer than `s2d_opd` called it.
    """
    if teacher_log_probs is None or old_log_probs is None:
        raise UserError(
            "the advantage estimator s2d_opd got no teacher log-probabilities",
            key="trainer.v1.trainer_mode",
            remedy="run it with trainer.v1.trainer_mode=s2d_opd, whose workers hold the teacher",
        )
    advantages = sampled_token_advantage(teacher_log_probs, old_log_probs, response_mask, beta=beta, whiten=whiten)
    return advantages, advantages
