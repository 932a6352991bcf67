"""Tests of what a user sees of a running stage: phase, step, figures and the time left."""

from __future__ import annotations

import io
import json

import pytest

from verl_s2d.metrics.metric_logs import last_entry
from verl_s2d.metrics.metric_table import Metric, live_figures
from verl_s2d.stages import stages
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.progress import Pace, PlainProgress

TRAINS, SAMPLES = Node(stages()["grpo"], "teacher-rl", {"steps": 40}), Node(stages()["evaluate"], "evaluate-a", {})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_pace_counts_from_the_first_step_seen_because_what_came_before_was_the_start():
    clock = Clock()
    pace = Pace(TRAINS, 40, clock)
    assert pace.look(None) == "starting models and engines"
    clock.now = 100.0
    assert pace.look(1) == ""
    clock.now = 130.0
    assert pace.look(7) == "2 min 45 s left"  # 33 steps of 5 s
    clock.now = 134.0
    assert pace.look(7) == "2 min 45 s left"
    clock.now = 300.0
    assert pace.look(40) == "saving the model"


def test_a_resumed_stage_has_its_own_pace():
    clock = Clock()
    pace = Pace(TRAINS, 40, clock)
    pace.look(20)
    clock.now = 10.0
    assert pace.look(30) == "10 s left"


def test_stages_without_steps_say_nothing_of_them():
    pace = Pace(SAMPLES, None)
    assert pace.look(None) == ""
    pace = Pace(TRAINS, None)
    assert [pace.look(step) for step in (3, 9)] == ["", ""]


def test_plain_lines_have_phase_figures_and_time_left_and_none_is_said_twice():
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=0)
    progress.stage_started(TRAINS, 6, 14, 40, 1)
    for _ in range(2):
        progress.stage_step(TRAINS, None)
    for _ in range(2):
        progress.stage_step(TRAINS, 1, ["score 0.210"])
    progress.stage_ended(TRAINS, 100, "done")
    said = [line.split(" ", 1)[1].strip() for line in stream.getvalue().splitlines()]
    assert said[1:] == [
        "teacher-rl: starting models and engines",
        "teacher-rl: step 1/40, score 0.210",
        "teacher-rl done after 1 min 40 s",
    ]


@pytest.mark.parametrize("value", [None, "text", float("nan")])
def test_figures_that_are_no_numbers_are_left_out(value):
    metrics = (Metric("score", live="score {:.3f}"), Metric("loss"), Metric("speed", live="{:,.0f} tokens/s"))
    assert live_figures(metrics, {"score": value, "loss": 1.0, "speed": 12345.6}) == ["12,346 tokens/s"]
    assert live_figures(metrics, {}) == []


@pytest.mark.parametrize("kind", [kind for kind, stage in stages().items() if stage.trains])
def test_every_kind_of_stage_that_trains_has_a_figure(kind):
    shown = [metric.live for metric in stages()[kind].metrics if metric.live]
    assert shown and all(live.format(0.5) for live in shown)


def test_the_newest_entry_of_a_metrics_file_has_its_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 3, "data": {"score": 0.5}}) + '\n{"step": 4, "da')
    assert last_entry(path) == (3, {"score": 0.5})
    assert last_entry(tmp_path / "none") is None
