"""Compute hint-delta and keep the proposals whose hint leads away from the answer least (G-Zero, arXiv 2605.09959)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def hint_delta(without: Sequence[float], hinted: Sequence[float]) -> float:
    """Compute d = mean_t log p(a_t | q, a_<t) - mean_t log p(a_t | q, h, a_<t), in nats a token.

    Args:
        without, hinted: (tokens,) log-probs of one answer's tokens, after the question alone and after question and
            hint. The answer was sampled without the hint.

    Raises:
        ValueError: the two are of different length, or there is no token.
    """
    if len(without) != len(hinted) or not len(without):
        raise ValueError(f"log-probs of {len(without)} and {len(hinted)} tokens are not those of one answer")
    return float(np.mean(without, dtype=np.float64) - np.mean(hinted, dtype=np.float64))


def within_percentiles(deltas: Sequence[float], least: float, largest: float) -> np.ndarray:
    """Tell which deltas lie between two percentiles of all of them, the bounds included.

    Args:
        deltas: (proposals,) hint-deltas.
        least, largest: percentiles, 0 to 100.

    Returns:
        (proposals,) bool.
    """
    values = np.asarray(deltas, np.float64)
    if not values.size:
        return np.zeros(0, bool)
    low, high = np.percentile(values, [least, largest])
    return (values >= low) & (values <= high)
