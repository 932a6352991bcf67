"""Measure how far a policy has travelled from its start, on its own fresh rollouts.

    d = sqrt(mean over response tokens of k3),   k3 = exp(r) - 1 - r,   r = log pi_start(y_t|s_t) - log pi_S(y_t|s_t)

With y sampled from pi_S, k3 is an unbiased estimate of KL(pi_S || pi_start) that is never negative. In arXiv 2609.32722
the score grows linearly in d, and useful transfer by on-policy distillation ends at d = .20 to .36, at the median .30.
"""

from __future__ import annotations

import torch


def k3(start_log_probs: torch.Tensor, student_log_probs: torch.Tensor) -> torch.Tensor:
    """Compute exp(r) - 1 - r of each token, r = log pi_start - log pi_S.

    Args:
        start_log_probs, student_log_probs: log-probs of the sampled tokens, of one shape, any float dtype.

    Returns:
        That shape, float64, detached, at least 0.
    """
    ratio = start_log_probs.detach().double() - student_log_probs.detach().double()
    # expm1 keeps the digits of a small r, which exp(r) - 1 would lose; rounding may still leave -1e-17.
    return (torch.expm1(ratio) - ratio).clamp(min=0)


def travel(start_log_probs: torch.Tensor, student_log_probs: torch.Tensor, response_mask: torch.Tensor) -> float:
    """Compute d over a batch; 0 without response tokens.

    Args:
        start_log_probs: (batch, response) log-probs of the sampled tokens under the policy at the stage's start.
        student_log_probs: (batch, response) log-probs of the same tokens under the policy that sampled them.
        response_mask: (batch, response), nonzero on sampled tokens; log-probs at other positions are ignored.
    """
    mask = response_mask.bool()
    tokens = k3(start_log_probs[mask], student_log_probs[mask])
    return tokens.mean().sqrt().item() if len(tokens) else 0.0
