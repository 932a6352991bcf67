"""Compute on-policy distillation's advantage: a policy gradient with a dense per-token reward.

Minimising KL(pi_S || pi_T) on the student's own samples y follows E_y[ sum_t -A_t grad log pi_S(y_t|s_t) ] with

    A_t = beta (log pi_T(y_t|s_t) - log pi_S(y_t|s_t)),   held fixed (arXiv 2605.12483, implicit reward of OPD).

Only the *sampled* token's log-ratio can serve as an advantage. A full-vocabulary divergence does not depend on the
sampled token, so as an advantage it has zero expected gradient. Back-propagated directly, k1 has zero expected gradient
and k3 that of the forward KL.
"""

from __future__ import annotations

import torch


def sampled_token_advantage(
    teacher_log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    beta: float = 1.0,
    whiten: bool = False,
) -> torch.Tensor:
    """Compute A_t = beta (log pi_T(y_t|s_t) - log pi_old(y_t|s_t)) on response tokens, zero elsewhere.

    Args:
        teacher_log_probs: (batch, response) log-probs of the sampled tokens under the teacher, any float dtype.
        old_log_probs: (batch, response) log-probs of the same tokens under the policy before the update.
        response_mask: (batch, response), nonzero on sampled tokens; log-probs at other positions are ignored.
        beta: scale.
        whiten: zero mean and unit variance over the batch's response tokens; no effect on fewer than two.

    Returns:
        (batch, response) float32, detached.
    """
    mask = response_mask.bool()
    difference = teacher_log_probs.detach().float() - old_log_probs.detach().float()
    advantages = torch.where(mask, beta * difference, 0.0)
    if whiten and int(mask.sum()) > 1:
        on_tokens = advantages[mask]
        advantages = torch.where(mask, (advantages - on_tokens.mean()) / (on_tokens.std() + 1e-8), 0.0)
    return advantages


def clip_advantages(advantages: torch.Tensor, response_mask: torch.Tensor, limit: float) -> tuple[torch.Tensor, float]:
    """Clip advantages to [-limit, limit] and return the fraction of response tokens clipped.

    A token that the teacher finds very unlikely has an advantage of -10 or less and outweighs hundreds of others.

    Args:
        advantages, response_mask: (batch, response).
        limit: largest magnitude, above 0.
    """
    mask = response_mask.bool()
    beyond = (advantages.abs() > limit) & mask
    return advantages.clamp(-limit, limit), (beyond.sum() / mask.sum().clamp(min=1)).item()
