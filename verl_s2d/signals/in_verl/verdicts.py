"""Read the verifier's verdicts from verl's rewards."""

from __future__ import annotations

import torch


def correct_rollouts(rm_scores: torch.Tensor) -> torch.Tensor:
    """Report which rollouts have full marks: a score of at least 1, as in evaluations.

    Args:
        rm_scores: (batch, response) rewards; verl puts the score at the last token.

    Returns:
        (batch,) bool.
    """
    return rm_scores.sum(-1) >= 1
