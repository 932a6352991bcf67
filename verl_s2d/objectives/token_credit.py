"""Assign a rollout's advantage to its tokens by how much likelier the teacher finds them than the student.

Delta_t = log pi_T(y_t|s_t) - log pi_old(y_t|s_t),   held fixed;   A: GRPO's advantage, one per rollout.
"""

from __future__ import annotations

import torch


def credit_weights(
    delta: torch.Tensor, advantages: torch.Tensor, *, epsilon: float, direction: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the weights of RLSD, and those of RLRT with direction -1.

        w_t = clip(exp(direction sign(A) Delta_t), 1 - epsilon, 1 + epsilon)

    With direction 1 a token gets more credit or blame where teacher and verifier agree about it (RLSD); with -1 where
    they disagree (RLRT, arXiv 2605.10781).

    Args:
        delta, advantages: (batch, response), any float dtype.
        epsilon: in (0, 1), so that weights are positive and A keeps its sign.
        direction: 1 or -1.

    Returns:
        Weights, float32, and whether each was clipped; both (batch, response), detached.
    """
    ratio = torch.exp(direction * advantages.detach().sign().float() * delta.detach().float())
    weights = ratio.clamp(1 - epsilon, 1 + epsilon)
    return weights, weights != ratio


def interpolated_advantages(advantages: torch.Tensor, weights: torch.Tensor, lam: float) -> torch.Tensor:
    """Compute A ((1 - lam) + lam w), between GRPO's advantage (lam = 0) and the weighted one.

    Args:
        advantages, weights: (batch, response).
    """
    return advantages * ((1 - lam) + lam * weights)


def anchored_log_probs(
    old_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, mask: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Compute TRRD's anchor of the policy ratio, alpha log pi_old + (1 - alpha) log pi_T (RLAD, arXiv 2602.22495).

    It is the log-prob of the sampled token under the unnormalised geometric mean of the two policies. alpha = 1 is PPO.

    Args:
        old_log_probs, teacher_log_probs: (batch, response).
        mask: (batch, response), nonzero on sampled tokens; elsewhere the old log-probs are returned.
    """
    anchor = alpha * old_log_probs.detach() + (1 - alpha) * teacher_log_probs.detach()
    return torch.where(mask.bool(), anchor, old_log_probs.detach())


def linear_schedule(start: float, end: float, progress: float) -> float:
    """Interpolate from `start` at progress 0, the first step, to `end` at progress 1, the last."""
    return start + (end - start) * progress
