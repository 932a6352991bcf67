"""What stage 2b reports about a batch of student rollouts."""

from __future__ import annotations

import torch

# What the workers report of an exact divergence, by the names of training.full_vocabulary.
EXACT_METRICS = (
    "reverse_kl",
    "reverse_kl_max",
    "jsd",
    "jsd_max",
    "student_entropy",
    "teacher_entropy",
    "top1_agreement",
    "overlap_ratio",
    "teacher_mass_on_student_top",
    "student_mass_on_teacher_top",
    "skipped_updates",
)


def sampled_reverse_kl_metrics(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, response_mask: torch.Tensor
) -> dict[str, float]:
    """Mean and largest log pi_S - log pi_T over sampled tokens, whose mean estimates KL(pi_S || pi_T) per token.

    Args:
        student_log_probs, teacher_log_probs: (batch, response) of the sampled tokens.
        response_mask: (batch, response), 1 on sampled tokens.
    """
    difference = (student_log_probs.float() - teacher_log_probs.float())[response_mask.bool()]
    return {
        "s2d/reverse_kl": difference.mean().item() if len(difference) else 0.0,
        "s2d/reverse_kl_max": difference.max().item() if len(difference) else 0.0,
        **rollout_metrics(response_mask),
    }


def rollout_metrics(response_mask: torch.Tensor) -> dict[str, float]:
    """How many tokens were sampled, each of them scored by the teacher once, and tokens per response."""
    mask = response_mask.bool()
    tokens, rows = int(mask.sum()), int(mask.any(dim=1).sum())
    return {
        "s2d/sampled_tokens": tokens,
        "s2d/teacher_scored_tokens": tokens,
        "s2d/response_length": tokens / rows if rows else 0.0,
    }
