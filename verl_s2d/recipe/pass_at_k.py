"""Compute pass@k, and check the k of a recipe. Plain Python: recipes are read without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from verl_s2d.validation import Refused


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Estimate the probability that one of k samples is right: 1 - C(n-c, k) / C(n, k), unbiased (Chen et al. 2021).

    Raises:
        ValueError: k is not in 1..samples, or correct not in 0..samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} is undefined for {correct} correct of {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_pass_at(correct: Sequence[int], samples: int, ks: Sequence[int]) -> dict[str, float]:
    """Return k (as text) -> mean over problems; `correct` holds each problem's number of right samples."""
    return {str(k): sum(pass_at_k(c, samples, k) for c in correct) / len(correct) for k in ks}


def usual_ks(samples: int) -> list[int]:
    """Return 1, 2, 4, ... below the number of samples, and that number."""
    return [k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples] + [samples]


def check_pass_at(ks: Sequence[int], samples: int, key: str) -> None:
    """Raise Refused for a k below 1 or above the number of samples."""
    for k in ks:
        if not 1 <= k <= samples:
            raise Refused(
                f"pass@k of {samples} samples is not defined for this k.",
                key=key,
                value=k,
                remedy=f"At least 1 and at most {samples}, or draw more samples.",
            )
