"""What stage 2b reports about a batch of student rollouts."""

from __future__ import annotations

import torch


def sampled_reverse_kl_metrics(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, response_mask: torch.Tensor
) -> dict[str, float]:
    """Mean and largest log pi_S - log pi_T over sampled tokens, whose mean estimates KL(pi_S || pi_T) per token.

    Args:
        student_log_probs, teacher_log_probs: (batch, response) of the sampled tokens.
        response_mask: (batch, response), 1 on sampled tokens.
    """
    mask = response_mask.bool()
    difference = (student_log_probs.float() - teacher_log_probs.float())[mask]
    tokens = int(mask.sum())
    rows = int(mask.any(dim=1).sum())
    return {
        "s2d/reverse_kl": difference.mean().item() if tokens else 0.0,
        "s2d/reverse_kl_max": difference.max().item() if tokens else 0.0,
        "s2d/sampled_tokens": tokens,
        "s2d/teacher_scored_tokens": tokens,
        "s2d/response_length": tokens / rows if rows else 0.0,
    }
