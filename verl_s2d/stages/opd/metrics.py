"""Measure a batch of student rollouts in stage 2b."""

from __future__ import annotations

import math

import torch

from verl_s2d.signals.in_verl.health_metrics import HEALTH_METRICS

# Metrics of an exact signal that the workers report, as signals.in_verl.full_vocabulary names them.
EXACT_METRICS = (
    "forward_kl",
    "forward_kl_max",
    "reverse_kl",
    "reverse_kl_max",
    "jsd",
    "jsd_max",
    "student_entropy",
    "teacher_entropy",
    "top1_agreement",
    "kept_q3_share",
    *HEALTH_METRICS,
    "teacher_mass_on_own_top",
    "skipped_updates",
)


def sampled_reverse_kl_metrics(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, response_mask: torch.Tensor
) -> dict[str, float]:
    """Compute mean and maximum of log pi_S - log pi_T over sampled tokens; the mean estimates KL(pi_S || pi_T).

    Args:
        student_log_probs, teacher_log_probs: (batch, response) of the sampled tokens.
        response_mask: (batch, response), 1 on sampled tokens.
    """
    difference = (student_log_probs.float() - teacher_log_probs.float())[response_mask.bool()]
    return {
        "s2d/reverse_kl": difference.mean().item() if len(difference) else 0.0,
        "s2d/reverse_kl_max": difference.max().item() if len(difference) else 0.0,
    }


def advantage_metrics(advantages: torch.Tensor, response_mask: torch.Tensor) -> dict[str, float]:
    """Compute the 99.9th percentile of |A| over sampled tokens (nearest rank: the maximum of fewer than 1,000).

    Args:
        advantages: (batch, response).
        response_mask: (batch, response), 1 on sampled tokens.
    """
    sizes = advantages.float().abs()[response_mask.bool()]
    rank = math.ceil(0.999 * len(sizes))
    return {"s2d/advantage_p99.9": sizes.kthvalue(rank).values.item() if rank else 0.0}


def rollout_metrics(response_mask: torch.Tensor, *, scored: bool) -> dict[str, float]:
    """Count the sampled tokens, and compute tokens per response.

    Args:
        response_mask: (batch, response), 1 on sampled tokens.
        scored: a teacher scores each of them once.
    """
    mask = response_mask.bool()
    tokens, rows = int(mask.sum()), int(mask.any(dim=1).sum())
    return {
        "s2d/sampled_tokens": tokens,
        "s2d/teacher_scored_tokens": tokens if scored else 0,
        "s2d/response_length": tokens / rows if rows else 0.0,
    }
