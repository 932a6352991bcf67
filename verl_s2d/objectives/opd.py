"""On-policy distillation as a policy gradient with a dense per-token reward.

Minimising KL(pi_S || pi_T) on the student's own samples y follows E_y[ sum_t -A_t grad log pi_S(y_t|s_t) ] with

    A_t = beta (log pi_T(y_t|s_t) - log pi_S(y_t|s_t)),   held fixed (arXiv 2605.12483, implicit reward of OPD).

Only the *sampled* token's log-ratio can serve as an advantage. A full-vocabulary divergence does not depend on the
sampled token, so as an advantage its expected gradient is zero; and k1 or k3 back-propagated directly have zero
expected gradient and the gradient of the forward KL.
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
    """A_t = beta (log pi_T(y_t|s_t) - log pi_old(y_t|s_t)) on response tokens, zero elsewhere.

    Args:
        teacher_log_probs: (batch, response) log-probs of the sampled tokens under the teacher, any float dtype.
        old_log_probs: (batch, response) the same under the policy that the update starts from.
        response_mask: (batch, response), nonzero on sampled tokens; what the other entries hold does not matter.
        beta: scale.
        whiten: zero mean and unit variance over the batch's response tokens (needs at least two of them).

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
    """Advantages within [-limit, limit], and the share of response tokens that this changed.

    A token that the teacher all but rules out has an advantage of minus ten and more, and outweighs hundreds of others.

    Args:
        advantages, response_mask: (batch, response).
        limit: largest magnitude left, above 0.
    """
    mask = response_mask.bool()
    beyond = (advantages.abs() > limit) & mask
    return advantages.clamp(-limit, limit), (beyond.sum() / mask.sum().clamp(min=1)).item()
