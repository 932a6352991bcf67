"""Alarms on travel and overlap: silent but for the series that they are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.metrics.detectors import Detectors
from verl_s2d.recipe.alarm_settings import Alarms
from verl_s2d.stages import stages


def raised(*series, kind="opd", **changes):
    """Feed series of values, (metric, values), in parallel."""
    chosen = Alarms().model_dump()
    for key, value in changes.items():
        alarm, _, name = key.partition("__")
        chosen[alarm][name] = value
    detectors = Detectors(stages()[kind].metrics, chosen, 16)
    steps = zip(*(values for _, values in series), strict=True)
    names = [metric for metric, _ in series]
    return [
        alarm
        for step, values in enumerate(steps, 1)
        for alarm in detectors.feed(step, {m: v for m, v in zip(names, values, strict=True) if v is not None})
    ]


def overlap(*values):
    return ("s2d/overlap_ratio", values)


def parsed(*values):
    return ("s2d/parse_rate", values)


def test_travel_past_its_limit_is_told_once():
    (alarm,) = raised(("s2d/travel", [0.01 * i for i in range(1, 60)]))
    assert (alarm.alarm, alarm.since, alarm.step, alarm.limit) == ("travel", 30, 32, 0.3)
    assert "stage 3" in alarm.text
    assert raised(("s2d/travel", [0.29] * 60)) == []
    assert raised(("s2d/travel", [0.1, 0.5, 0.1, 0.5, 0.5, 0.1])) == [], "one batch is noise"
    assert raised(("s2d/travel", [1.0] * 9), travel__limit=2.0) == []


@given(st.lists(st.floats(0.92, 1), min_size=40, max_size=40))
def test_an_overlap_that_stays_near_its_start_raises_nothing(values):
    assert raised(overlap(*values)) == []


def test_an_overlap_that_falls_below_its_share_of_the_start_is_told_by_its_median():
    (alarm,) = raised(overlap(*[0.8] * 10, *[0.7] * 20))
    # The median of ten steps reaches 0.7 when six of them have.
    assert (alarm.alarm, alarm.metric, alarm.step, alarm.since) == ("overlap", "s2d/overlap_ratio", 16, 7)
    assert alarm.reference == 0.8 and alarm.limit == pytest.approx(0.72) and alarm.value == 0.7
    assert raised(overlap(*[0.8] * 10, *[0.1] * 4, *[0.8] * 10)) == [], "four steps are no median"


def test_a_rising_overlap_is_told_only_while_answers_get_lost():
    rising = [0.7 + 0.005 * i for i in range(40)]
    (alarm,) = raised(overlap(*rising), parsed(*[0.9] * 10, *[0.7] * 30))
    assert (alarm.alarm, alarm.metric) == ("overlap", "s2d/parse_rate") and alarm.limit == pytest.approx(0.85)
    assert raised(overlap(*rising), parsed(*[0.9] * 10, *[0.86] * 30)) == []
    assert raised(overlap(*rising), parsed(*[0.9] * 40)) == []
    assert raised(overlap(*[0.7] * 40), parsed(*[0.9] * 10, *[0.7] * 30)) == [], "this overlap does not rise"
    assert raised(overlap(*rising), parsed(*[None] * 40)) == [], "no response was finished"


def test_an_alarm_ends_and_may_come_again():
    values = [0.8] * 10 + ([0.6] * 10 + [0.8] * 10) * 2
    assert len(raised(overlap(*values))) == 2
    assert raised(overlap(*values), overlap__action="ignore") == []


def test_stages_without_these_metrics_are_not_watched():
    assert raised(overlap(*[0.8] * 10, *[0.1] * 20), kind="grpo") == []
