"""The fits of the pilot on draws from their own laws, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.world import World
from verl_s2d.planner.fits import FitRefused, Resamples, fit_line, interval
from verl_s2d.planner.law import Points, fit_curve, log_errors
from verl_s2d.planner.transfer import Travelled, fit_transfer

LABELS = (64, 128, 256)


def test_exponents_are_recovered():
    """The law's parameters come out of a large sample, without bias in either direction."""
    curve = fit_curve(World(0, problems=20_000).points(LABELS, 0.3, 0.25), Resamples(20_000, 50), "student")
    low, high = np.quantile(curve.exponent[1:], [0.0, 1.0])
    assert curve.exponent[0] == pytest.approx(0.25, abs=0.02) and low < 0.25 < high
    assert np.exp(curve.log_error(1024)[0]) == pytest.approx(np.exp(0.3 - 0.25 * np.log(1024)), rel=0.03)


def test_intervals_cover():
    """The 90 % interval of the accuracy at 4 times as many labels holds the truth in 85 to 95 % of 200 draws."""
    truth = 1 - np.exp(0.4 - 0.2 * np.log(1024))
    resamples, covered = Resamples(200, 1_000), 0
    for seed in range(200):
        curve = fit_curve(World(seed).points(LABELS, 0.4, 0.2), resamples, "student")
        low, high = interval(1 - np.exp(curve.log_error(1024)), 0.9)
        covered += low <= truth <= high
    assert 170 <= covered <= 190


def test_transfer_is_recovered():
    world = World(3, problems=20_000)
    line = fit_transfer(world.travelled(64, 0.2, 0.5), 0.3, Resamples(20_000, 50), "teacher")
    assert line.at(0.3)[0] == pytest.approx(0.5, abs=0.01) and line.intercept[0] == pytest.approx(0.2, abs=0.01)


def test_points_beyond_the_limit_do_not_count():
    """A score that falls after the useful travel leaves the line as it is."""
    near = World(1).travelled(64, 0.2, 0.5)
    far = Travelled(64, (*near.travel, 0.5), np.vstack([near.right, np.zeros(200)]))
    resamples = Resamples(200, 100)
    assert (
        fit_transfer(near, 0.3, resamples, "t").slope.tolist() == fit_transfer(far, 0.3, resamples, "t").slope.tolist()
    )


def test_a_falling_student_is_a_result():
    line = fit_transfer(World(2).travelled(64, 0.5, 0.3), 0.3, Resamples(200, 200), "teacher")
    assert line.slope[0] < 0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1_000))
def test_weighted_least_squares_against_normal_equations(points, seed):
    """Every resample's line is numpy's weighted least squares, in float64."""
    random = np.random.default_rng(seed)
    x, y = np.arange(points) + random.uniform(0, 0.5, points), random.normal(size=(40, points))
    line = fit_line(x, y, np.full(points, 1e-3))
    weights = 1 / y[1:].std(axis=0, ddof=1)
    for row in (0, 17):
        slope, intercept = np.polyfit(x, y[row], 1, w=weights)
        assert line.slope[row] == pytest.approx(slope, abs=1e-9)
        assert line.intercept[row] == pytest.approx(intercept, abs=1e-9)
    assert 0 <= line.p_value <= 1 and (points > 2 or line.p_value == 1)


def test_chi_squared_has_its_level():
    """With points on the line, p-values below 5 % are about one in twenty."""
    resamples, low = Resamples(200, 500), 0
    for seed in range(200):
        low += fit_curve(World(seed).points((32, 64, 128, 256), 0.4, 0.2), resamples, "m").line.p_value < 0.05
    assert low <= 20


def right(*accuracies: float, problems: int = 200) -> np.ndarray:
    return World(9, problems).right(accuracies)


@pytest.mark.parametrize(
    ("points", "words", "blocks"),
    [
        (Points((64,), right(0.3)), "one point", True),
        (Points((64, 64), right(0.3, 0.4)), "one point", True),
        (Points(LABELS, np.zeros((3, 200))), "never solves a problem", False),
        (Points(LABELS, np.tile(right(0.3), (3, 1))), "nothing changes it", True),
        (Points(LABELS, right(0.2, 0.6, 0.2)), "does not follow the law", True),
        (Points(LABELS, right(0.6, 0.45, 0.3)), "falls with labels", False),
    ],
)
def test_a_curve_that_does_not_hold_is_refused(points, words, blocks):
    with pytest.raises(FitRefused, match=words) as refused:
        fit_curve(points, Resamples(200, 200), "student")
    assert refused.value.blocks is blocks


@pytest.mark.parametrize(
    ("travel", "accuracies", "words"),
    [
        ((0.0, 0.4, 0.6), (0.2, 0.4, 0.5), "travelled 0.4 at the first evaluation"),
        ((0.0, 0.1, 0.2, 0.3), (0.2, 0.6, 0.2, 0.6), "chi-squared"),
    ],
)
def test_a_transfer_that_does_not_hold_is_refused(travel, accuracies, words):
    with pytest.raises(FitRefused, match=words):
        fit_transfer(Travelled(64, travel, right(*accuracies)), 0.3, Resamples(200, 200), "teacher")


def test_a_ceiling_bends_the_curve():
    """A curve that stops at the share of problems that can be solved at all is refused, not extrapolated."""
    with pytest.raises(FitRefused, match="does not follow the law"):
        fit_curve(Points((32, 64, 128, 256), right(0.1, 0.55, 0.6, 0.6, problems=400)), Resamples(400, 300), "m")


def test_all_right_counts_as_half_a_problem_short():
    logs = log_errors(np.ones((1, 50)), Resamples(50, 20))
    assert np.exp(logs).ravel() == pytest.approx(0.01)
