"""Compute statistics of repeated sampling in plain Python and numpy. Accuracies are fractions, not percent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom."""


class Estimate(NamedTuple):
    """A mean and its standard error (nan for a single value)."""

    mean: float
    stderr: float


class Interval(NamedTuple):
    """A mean with a two-sided 95 % interval."""

    mean: float
    low: float
    high: float


def mean_and_stderr(values: Sequence[float]) -> Estimate:
    """Compute the mean and its standard error: sample standard deviation (ddof=1) / sqrt(number of values)."""
    array = np.asarray(values, dtype=np.float64)
    stderr = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return Estimate(float(array.mean()), float(stderr))


def ratio_and_stderr(totals: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Compute r = sum(totals) / sum(weights) over clusters, such as a mean over the tokens of all rollouts of problems.

    The standard error is that of the linearised ratio over the n clusters: sqrt(n / (n - 1) sum_i (t_i - r w_i)^2) /
    sum(weights); nan for a single cluster.
    """
    t, w = np.asarray(totals, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    ratio, n = t.sum() / w.sum(), len(t)
    stderr = math.sqrt(n / (n - 1) * ((t - ratio * w) ** 2).sum()) / w.sum() if n > 1 else math.nan
    return Estimate(float(ratio), float(stderr))


def t_interval(values: Sequence[float]) -> Interval:
    """Compute the 95 % interval of the mean of a few independent values (seeds) by Student's t."""
    mean, stderr = mean_and_stderr(values)
    freedom = len(values) - 1
    if freedom < 1:
        return Interval(mean, math.nan, math.nan)
    half = (_T_975[freedom - 1] if freedom <= len(_T_975) else 1.96) * stderr
    return Interval(mean, mean - half, mean + half)


def paired_bootstrap(a: Sequence[float], b: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Compute the mean of b - a over the same problems, with the 95 % percentile interval over resampled problems.

    Args:
        a, b: one value per problem, in the same order.

    Raises:
        ValueError: lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values needed, got {len(a)} and {len(b)}")
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    drawn = resample_counts(len(difference), resamples, seed) @ difference / len(difference)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))


def gain_share(
    seeds: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]], *, resamples: int = 10_000
) -> Interval | None:
    """Compute the share of the teacher's gain that a student kept, with its 95 % percentile interval.

    share = sum over seeds of mean(student - cold) / sum over seeds of mean(teacher - cold), means over problems; the
    interval is over problems that are resampled within each seed.

    Args:
        seeds: of each seed cold, teacher and student: one value per problem, in the same order.

    Returns:
        None where the teacher's gain itself cannot be told from zero: the share would have no bounds.
    """
    kept, offered, gain, lead = np.zeros(resamples), np.zeros(resamples), 0.0, 0.0
    for place, values in enumerate(seeds):
        cold, teacher, student = (np.asarray(one, dtype=np.float64) for one in values)
        counts = resample_counts(len(cold), resamples, place) / len(cold)
        kept, offered = kept + counts @ (student - cold), offered + counts @ (teacher - cold)
        gain, lead = gain + (student - cold).mean(), lead + (teacher - cold).mean()
    if lead <= 0 or np.quantile(offered, 0.025) <= 0:
        return None
    # Resamples in which the teacher gains nothing, at most 2.5 % of them, have no share.
    shares = kept[offered > 0] / offered[offered > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(gain / lead), float(low), float(high))


@lru_cache(maxsize=4)
def resample_counts(problems: int, resamples: int, seed: int) -> np.ndarray:
    """Draw (resamples, problems) counts of each problem in each resample: equals drawing indices, without a gather.

    Cached, because a report compares many rows on few sets.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(problems, [1 / problems] * problems, size=resamples).astype(np.float64)
