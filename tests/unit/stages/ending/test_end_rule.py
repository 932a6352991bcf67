"""The rules of `until:` against scipy's regression, by their properties, and across a kill at any step."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import linregress

from verl_s2d.recipe.until import Until
from verl_s2d.stages.ending.end_rule import EndRule, slope
from verl_s2d.validation import validated

finite = st.floats(-1e3, 1e3)
series = st.lists(finite, min_size=3, max_size=40)
rules = st.fixed_dictionaries(
    {},
    optional={
        "travel": st.floats(0.01, 1.0),
        "sampled_tokens": st.integers(1, 300),
        "plateau": st.fixed_dictionaries(
            {"of": st.sampled_from(["validation", "divergence"])},
            optional={"window": st.integers(3, 8), "slope_se": st.floats(0, 3)},
        ),
    },
)


def rule(**rules) -> EndRule:
    return EndRule(validated(Until, rules))


def of_validation(scores, **plateau) -> str | None:
    """The reason of the end after these scores, five steps apart."""
    one = rule(plateau={"of": "validation", **plateau})
    for number, score in enumerate(scores, 1):
        one.add_validation(5 * number, score)
    return one.reason


@given(series)
def test_the_slope_and_its_error_are_scipys(values):
    assume(np.ptp(values) > 1e-3)  # scipy's error of a constant series is NaN
    steps = [3.0 * i + 7 for i in range(len(values))]
    found, error = slope(list(zip(steps, values, strict=True)))
    expected = linregress(np.array(steps), np.array(values))
    size = max(map(abs, values)) + 1
    assert found == pytest.approx(expected.slope, rel=1e-9, abs=1e-11 * size)
    # scipy's comes from 1 - r^2, which has few digits where a line fits well.
    assert error == pytest.approx(expected.stderr, rel=1e-5, abs=1e-7 * size)


@given(st.floats(-1e6, 1e6), st.integers(3, 60))
def test_equal_values_have_no_slope_and_no_error(value, count):
    assert slope([(i, value) for i in range(count)]) == (0.0, 0.0)


def test_validation_ends_a_stage_when_it_no_longer_rises():
    assert of_validation([0.1, 0.2]) is None, "too few"
    assert of_validation([0.1, 0.2, 0.3]) is None, "rises"
    assert of_validation([0.1, 0.2, 0.3, 0.31, 0.30]).endswith("over 3 values at step 25")
    assert of_validation([0.3, 0.3, 0.3]).endswith("at step 15"), "level"
    assert of_validation([0.3, 0.2, 0.1]).endswith("at step 15"), "falls"
    # Slope .0100 a step, standard error .0058 by hand: residuals +-1/60, -1/30.
    assert of_validation([0.1, 0.1, 0.2], slope_se=1.7) is None
    assert of_validation([0.1, 0.1, 0.2], slope_se=1.8).startswith("validation rises by 0.01 a step <= 1.8 x its")


def test_divergence_ends_a_stage_when_it_no_longer_falls():
    one = rule(plateau={"of": "divergence", "window": 4})
    for step, value in enumerate([5, 4, 3, 2, 1, 1, 1.01, 1], 1):
        one.add_step(step, divergence=value)
    assert one.reason.startswith("divergence falls by") and one.reason.endswith("over 4 values at step 8")


def test_defaults_of_the_window():
    assert validated(Until, {"plateau": "validation"}).plateau.window == 3
    assert validated(Until, {"plateau": {"of": "divergence", "slope_se": 2}}).plateau.window == 30


def test_travel_and_tokens_end_a_stage_at_the_first_step_that_reaches_them():
    one = rule(travel=0.3, sampled_tokens=100)
    one.add_step(1, tokens=60, travel=0.0)
    assert one.reason is None
    one.add_step(2, tokens=39, travel=0.29999)
    assert one.reason is None
    one.add_step(3, tokens=1, travel=0.301)
    assert one.reason == "travel 0.301 >= 0.3 at step 3", "the first rule of the section is named"
    one.add_step(4, tokens=1, travel=0.5)
    assert one.reason.endswith("at step 3")
    tokens = rule(travel=0.3, sampled_tokens=1500)
    tokens.add_step(7, tokens=1512)
    assert tokens.reason == "1,512 sampled tokens >= 1,500 at step 7"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_values_that_are_not_finite_do_not_count(value):
    one = rule(travel=0.3, plateau={"of": "divergence", "window": 3})
    for step in range(1, 9):
        one.add_step(step, travel=value, divergence=value)
    assert one.reason is None
    json.dumps(one.state(), allow_nan=False)


def test_no_rules_never_end():
    one = EndRule(None)
    one.add_step(1, tokens=10**9, travel=9.0, divergence=0.0)
    one.add_validation(1, 1.0)
    assert one.reason is None and not one.active


def test_a_second_validation_of_a_step_does_not_count():
    one = rule(plateau="validation")
    for step in (5, 5, 5, 10, 10):
        one.add_validation(step, 0.5)
    assert one.reason is None
    one.add_validation(15, 0.5)
    assert one.reason is not None


steps = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 0.5), st.floats(0, 5), st.none() | st.floats(0, 1)), max_size=30
)


@given(rules, steps, st.integers(0, 30))
def test_a_kill_at_any_step_changes_nothing(rules, steps, killed_at):
    """A checkpoint holds all that the rule needs, whether or not the step was validated."""

    def feed(one, step, values):
        tokens, travel, divergence, score = values
        one.add_step(step, tokens=tokens, travel=travel, divergence=divergence)
        if score is not None:
            one.add_validation(step, score)

    undisturbed, first, resumed = (EndRule(validated(Until, rules)) for _ in range(3))
    for step, values in enumerate(steps, 1):
        feed(undisturbed, step, values)
    for step, values in enumerate(steps[:killed_at], 1):
        feed(first, step, values)
    resumed.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    for step, values in enumerate(steps[killed_at:], killed_at + 1):
        feed(resumed, step, values)
    assert resumed.state() == undisturbed.state()


@given(series, st.floats(-10, 10), st.floats(0.1, 10))
def test_the_plateau_does_not_depend_on_origin_and_unit(values, origin, unit):
    rounded = [round(value, 3) for value in values]
    moved = [origin + unit * value for value in rounded]
    (b, error), (moved_b, moved_error) = (slope(list(enumerate(series))) for series in (rounded, moved))
    scale = (max(map(abs, moved)) + 1) * 1e-9
    assert moved_b == pytest.approx(unit * b, rel=1e-6, abs=scale)
    assert moved_error == pytest.approx(unit * error, rel=1e-6, abs=scale)
