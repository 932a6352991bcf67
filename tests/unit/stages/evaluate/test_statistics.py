"""Statistics against hand-computed values, enumeration and scipy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.recipe.pass_at_k import pass_at_k
from verl_s2d.stages.evaluate.statistics import mean_and_stderr, paired_bootstrap, t_interval


def test_mean_and_stderr_by_hand():
    # Deviations -0.5, 0, 0.5: variance 0.5 / 2, standard error sqrt(0.25 / 3).
    estimate = mean_and_stderr([0.0, 0.5, 1.0])
    assert estimate.mean == 0.5 and estimate.stderr == pytest.approx(math.sqrt(0.25 / 3))
    assert math.isnan(mean_and_stderr([0.3]).stderr)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples, data):
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    outcomes = [i < correct for i in range(samples)]
    subsets = list(combinations(outcomes, k))
    assert pass_at_k(correct, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_by_hand_and_at_paper_size():
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(0, 16, 16) == 0.0 and pass_at_k(1, 16, 16) == 1.0
    assert pass_at_k(3, 16, 1) == pytest.approx(3 / 16)
    assert 0 < pass_at_k(1, 100_000, 5) < 1e-4


@pytest.mark.parametrize(("correct", "samples", "k"), [(1, 4, 0), (1, 4, 5), (5, 4, 1), (-1, 4, 1)])
def test_undefined_pass_at_k(correct, samples, k):
    with pytest.raises(ValueError):
        pass_at_k(correct, samples, k)


@pytest.mark.parametrize("count", [2, 3, 4, 10, 31])
def test_t_interval_against_scipy(count):
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(size=count)
    low, high = scipy_stats.t.interval(0.95, count - 1, loc=values.mean(), scale=scipy_stats.sem(values))
    interval = t_interval(values)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-3)


def test_t_interval_of_one_value():
    assert t_interval([0.2]).mean == 0.2 and math.isnan(t_interval([0.2]).low)


def test_paired_bootstrap_uses_the_pairing():
    generator = np.random.default_rng(0)
    difficulty = generator.uniform(size=200)
    interval = paired_bootstrap(difficulty, difficulty + 0.05 + 0.02 * generator.normal(size=200))
    assert interval.low < 0.05 < interval.high and interval.high - interval.low < 0.01


def test_paired_bootstrap_agrees_with_the_normal_interval():
    generator = np.random.default_rng(1)
    a, b = generator.uniform(size=(2, 400))
    interval, estimate = paired_bootstrap(a, b), mean_and_stderr(b - a)
    assert interval.mean == pytest.approx(estimate.mean)
    assert interval.low == pytest.approx(estimate.mean - 1.96 * estimate.stderr, abs=0.2 * estimate.stderr)
    assert interval.high == pytest.approx(estimate.mean + 1.96 * estimate.stderr, abs=0.2 * estimate.stderr)
    assert paired_bootstrap(a, b) == interval


def test_paired_bootstrap_needs_pairs():
    with pytest.raises(ValueError):
        paired_bootstrap([1.0], [1.0, 0.0])
