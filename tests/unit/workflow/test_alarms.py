"""Alarms: silent on noise, raised by what they are for, once an episode; and what a recipe may say about them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.metrics.detectors import Detectors
from verl_s2d.recipe.alarm_settings import Alarms
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages import stages
from verl_s2d.stages.planning import make_plan

METRIC = {
    "loss_spike": "actor/loss",
    "length_explosion": "response_length/mean",
    "entropy_collapse": "actor/entropy",
    "score_collapse": "critic/score/mean",
    "kl_blow_up": "actor/kl_loss",
}
LIMIT = 512
RISING = ("loss_spike", "length_explosion", "kl_blow_up")
SEEDS = st.integers(0, 2**32)


def detectors(kind: str = "grpo", **changes) -> Detectors:
    """With the defaults but for `alarm__key=value`."""
    chosen = Alarms().model_dump()
    for key, value in changes.items():
        alarm, _, name = key.partition("__")
        chosen[alarm][name] = value
    return Detectors(stages()[kind].metrics, chosen, LIMIT)


def raised(found: Detectors, values, metric: str, first: int = 1):
    return [alarm for step, value in enumerate(values, first) for alarm in found.feed(step, {metric: value})]


@pytest.mark.parametrize("name", METRIC)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(level=st.floats(-100, 100), noise=st.floats(0, 30), seed=SEEDS)
def test_noise_around_a_constant_raises_nothing(name, level, noise, seed):
    values = [random.Random(seed + i).gauss(level, noise) for i in range(200)]
    assume(max(map(abs, values)) > 1e-6)
    assert raised(detectors(**{f"{name}__window": 40}), values, METRIC[name]) == []


@pytest.mark.parametrize("name", METRIC)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(level=st.floats(0.5, 100), noise=st.floats(0, 0.02), seed=SEEDS, before=st.integers(20, 60))
def test_a_step_change_is_noticed_within_the_patience(name, level, noise, seed, before):
    chosen = Alarms().model_dump()[name]
    after = 5 * level if name in RISING else 0.02 * level
    values = [level * random.Random(seed + i).gauss(1, noise) for i in range(before)] + [after] * 10
    (alarm,) = raised(detectors(), values, METRIC[name])
    assert alarm.alarm == name and alarm.metric == METRIC[name]
    assert alarm.since == before + 1 and alarm.step == before + chosen["patience"]


@given(step=st.integers(1, 10**6), value=st.sampled_from([math.nan, math.inf, -math.inf, None]))
@pytest.mark.parametrize("kind", ["grpo", "opd", "warmup"])
def test_what_is_not_finite_always_raises_an_alarm(kind, step, value):
    (alarm,) = detectors(kind).feed(step, {"actor/grad_norm": value, "actor/loss": 0.1, "timing_s/step": None})
    assert (alarm.alarm, alarm.step, alarm.since, alarm.value) == ("not_finite", step, step, None)
    assert "actor/grad_norm" in alarm.text


def test_an_update_that_was_left_out_is_an_alarm():
    (alarm,) = detectors("warmup").feed(3, {"train/skipped_updates": 1.0, "train/loss": 0.1})
    assert alarm.alarm == "not_finite" and alarm.metric == "train/skipped_updates"


def test_an_episode_is_told_once_and_the_next_one_again():
    found = detectors()
    assert len(raised(found, [1.0] * 20 + [9.0] * 30, "actor/loss")) == 1
    assert len(raised(found, [1.0] * 5 + [9.0] * 5, "actor/loss", 51)) == 1, "what was too high is not the new normal"
    assert len(raised(found, [math.nan] * 3 + [1.0] + [math.nan], "actor/loss", 61)) == 2


def test_slow_decay_is_compared_with_the_highest_median():
    values = [2.0 * 0.98**i for i in range(300)]
    (alarm,) = raised(detectors(), values, "actor/entropy")
    assert alarm.reference == pytest.approx(2.0, rel=0.25) and alarm.value < 0.1 * alarm.reference


def test_small_values_are_not_blown_up():
    assert raised(detectors(), [1e-6] * 20 + [0.04] * 20, "actor/ppo_kl") == []
    assert len(raised(detectors(), [1e-6] * 20 + [0.06] * 20, "actor/ppo_kl")) == 1


def test_the_validation_score_goes_before_the_training_score():
    found = detectors(score_collapse__window=3, score_collapse__patience=1)
    validated = {"val-core/math500/acc/mean@4": 0.6, "val-core/aime24/acc/mean@4": 0.2, "critic/score/mean": 0.9}
    for step in range(1, 4):
        assert found.feed(step, validated) == []
    assert found.feed(4, {"critic/score/mean": 0.0}) == []
    (alarm,) = found.feed(5, {"val-core/math500/acc/mean@4": 0.1, "critic/score/mean": 0.9})
    assert alarm.alarm == "score_collapse" and alarm.reference == pytest.approx(0.4)


def test_negative_scores_are_no_collapse():
    assert raised(detectors(), [-0.8, -0.82, -0.78] * 20, "critic/score/mean") == []
    assert raised(detectors("opd"), [0.0] * 40, "critic/score/mean") == []


@pytest.mark.parametrize("metric", ["critic/score/mean", "critic/advantages/max"])
def test_a_signal_that_was_never_there_is_told_once(metric):
    (alarm,) = raised(detectors(), [0.0] * 100, metric)
    assert (alarm.alarm, alarm.since, alarm.step) == ("no_signal", 1, 5)
    assert "since step 1" in alarm.text and "verifier" in alarm.text
    assert raised(detectors(), [0.0] * 4 + [0.1] + [0.0] * 100, metric) == [], "a score that falls is a collapse"


def test_the_score_of_gsm8k_under_a_verifier_that_reads_boxes():
    """Every right answer in the form that the prompts ask for scores 0."""
    found = detectors()
    logged = {"critic/score/mean": 0.0, "critic/advantages/max": 0.0, "actor/loss": 0.0, "actor/grad_norm": 0.0}
    alarms = [alarm for step in range(1, 101) for alarm in found.feed(step, logged)]
    assert {(alarm.alarm, alarm.step) for alarm in alarms} == {("no_signal", 5)}


def test_a_scorer_of_minus_one_has_no_signal_without_a_spread_either():
    found = detectors()
    logged = {"critic/score/mean": -1.0, "critic/advantages/max": 0.0}
    alarms = [alarm for step in range(1, 101) for alarm in found.feed(step, logged)]
    assert [(alarm.alarm, alarm.metric) for alarm in alarms] == [("no_signal", "critic/advantages/max")]


@pytest.mark.parametrize("metric", ["s2d/unscored_share", "s2d/validation_unscored_share"])
def test_one_percent_of_unscored_groups_is_told_once_an_episode(metric):
    alarms = raised(detectors(), [0.0, 0.008, 0.01, 0.5, 0.0, 0.02], metric)
    assert [(alarm.alarm, alarm.step) for alarm in alarms] == [("unscored", 3), ("unscored", 6)]
    assert "could not judge" in alarms[0].text
    assert raised(detectors("opd"), [1.0], metric) == [], "its teacher judges without a verifier"


@pytest.mark.parametrize(("kind", "metric"), [("opd", "actor/grad_norm"), ("warmup", "train/grad_norm")])
def test_a_gradient_that_was_never_there_is_told(kind, metric):
    (alarm,) = raised(detectors(kind), [0.0] * 20, metric)
    assert alarm.alarm == "no_signal"
    assert "the student itself" in alarm.text and "verifier" not in alarm.text


def cut_off(found: Detectors, ratios, longest: int):
    logged = [{"response_length/clip_ratio": ratio, "response_length/max": longest} for ratio in ratios]
    return [alarm for step, data in enumerate(logged, 1) for alarm in found.feed(step, data)]


@pytest.mark.parametrize("kind", ["grpo", "opd"])
def test_responses_that_are_nearly_all_cut_off_are_told_once_an_episode(kind):
    ratios = [0.5, 0.95, 0.95, 0.2, *[0.95] * 10, 0.1, *[1.0] * 3]
    alarms = cut_off(detectors(kind), ratios, LIMIT)
    assert [(alarm.alarm, alarm.since, alarm.step) for alarm in alarms] == [
        ("truncation", 5, 7),
        ("truncation", 16, 18),
    ]
    assert "cut off" in alarms[0].text


@pytest.mark.parametrize("kind", ["grpo", "opd"])
def test_answers_that_all_end_at_the_same_length_are_not_cut_off(kind):
    """verl's ratio counts responses as long as the longest of the batch, and the quickstart's all have four tokens."""
    assert cut_off(detectors(kind), [0.98] * 40, LIMIT - 1) == []


def test_an_alarm_that_is_ignored_is_silent():
    values = [1.0] * 20 + [9.0] * 30
    assert raised(detectors(loss_spike__action="ignore"), values, "actor/loss") == []
    assert detectors(not_finite__action="ignore").feed(1, {"actor/loss": None}) == []


def test_a_stage_overrides_single_keys(tmp_path):
    recipe = load_recipe(
        write_project(
            tmp_path,
            alarms={"kl_blow_up": {"action": "stop", "ratio": 5}, "not_finite": "stop"},
            stages__opd__alarms={"kl_blow_up": {"window": 8}, "entropy_collapse": "ignore"},
        )
    )
    opd = recipe.stage_alarms("opd")
    assert (opd.kl_blow_up.action, opd.kl_blow_up.ratio, opd.kl_blow_up.window) == ("stop", 5.0, 8)
    assert opd.not_finite.action == "stop" and opd.entropy_collapse.action == "ignore"
    assert recipe.stage_alarms("warmup") == recipe.alarms and recipe.alarms.kl_blow_up.window == 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alarms__loss_spyke": "stop"}, ["alarms.loss_spyke", "Did you mean loss_spike"]),
        ({"alarms__loss_spike": "halt"}, ["alarms.loss_spike.action", "'halt'", "log, stop, ignore"]),
        ({"alarms__loss_spike": {"window": 1}}, ["alarms.loss_spike.window", "At least 3"]),
        ({"stages__opd__alarms": {"not_finite": {"window": 9}}}, ["stages.opd.alarms.not_finite.window"]),
        ({"stages__warmup__alarms": {"entropy": "stop"}}, ["stages.warmup.alarms.entropy"]),
        ({"stages__warmup__alarms": {"kl_blow_up": 3}}, ["stages.warmup.alarms.kl_blow_up", "mapping"]),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        load_recipe(write_project(tmp_path, **changes))
    assert all(word in str(error.value) for word in words), str(error.value)


def digests(tmp_path, **changes) -> dict[str, str]:
    recipe = load_recipe(write_project(tmp_path, **changes))
    return {node.name: node.digest for node in make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"]).order}


def test_only_an_alarm_that_stops_is_part_of_what_is_built(tmp_path):
    plain = digests(tmp_path)
    assert digests(tmp_path, alarms={"loss_spike": "ignore", "kl_blow_up": {"window": 50}}) == plain
    stopping = digests(tmp_path, stages__opd__alarms={"kl_blow_up": "stop"})
    changed = {name for name in plain if plain[name] != stopping[name]}
    assert "opd-1h" in changed and changed & {"teacher-rl-1h", "warmup-1h", "rollouts-1h"} == set()
    saving = digests(tmp_path, stages__opd__alarms={"kl_blow_up": "stop"}, stages__opd__save_every=1)
    assert saving["opd-1h"] != stopping["opd-1h"], "which checkpoints there are decides which one is the best"
    assert digests(tmp_path, stages__opd__save_every=1) == plain
