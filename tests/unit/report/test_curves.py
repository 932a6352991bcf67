"""Check which points of the stages' metrics are kept."""

from __future__ import annotations

import json
import math

import pytest

from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.report.curves import curves_of, moving_mean, thin
from verl_s2d.stages.shared.panels import PANELS


def test_curves_of_attempts(tmp_path):
    (tmp_path / "metrics").mkdir()
    lines = [{"step": s, "data": {"s2d/reverse_kl": v, "critic/score/mean": 0.0}} for s, v in ((1, 0.5), (2, 0.4))]
    (tmp_path / "metrics/attempt-1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "metrics/attempt-2.jsonl").write_text('{"step": 2, "data": {"s2d/reverse_kl": 0.3}}\n{"step": 3, "da')
    (tmp_path / "metrics/attempt-10.jsonl").write_text('{"step": 3, "data": {"s2d/reverse_kl": 0.2}}\n')
    curves = curves_of("opd", 8, read_metrics(tmp_path))
    assert curves == {"reverse-kl": {"": {"steps": [1, 2, 3], "values": [0.5, 0.3, 0.2]}}}, "no verifier scored them"


def test_truncated_is_what_reached_the_limit():
    """verl's clip ratio is the share as long as the batch's longest answer."""
    metrics = {
        1: {"response_length/max": 4.0, "response_length/clip_ratio": 0.96},
        2: {"response_length/max": 8.0, "response_length/clip_ratio": 0.25},
    }
    assert curves_of("grpo", 8, metrics)["truncated"][""]["values"] == [0.0, 0.25]
    assert "truncated" not in curves_of("grpo", None, metrics)


def test_values_that_are_no_numbers_are_left_out():
    metrics = {
        1: {"actor/loss": math.nan},
        2: {"actor/loss": 1.0},
        3: {"actor/loss": "x"},
        4: {"actor/loss": None},
        5: {"actor/loss": math.inf},
    }
    assert curves_of("grpo", 8, metrics) == {"rl-loss": {"": {"steps": [2], "values": [1.0]}}}
    assert curves_of("slices", None, metrics) == {} == curves_of("grpo", 8, {})


def test_thinned_curves_keep_their_spikes_and_ends():
    steps, values = list(range(1, 10_001)), [0.0] * 10_000
    values[4321], values[7777] = 9.0, -9.0
    kept, heights = thin(steps, values, 100)
    assert len(kept) <= 100 and kept == sorted(set(kept)) and (kept[0], kept[-1]) == (1, 10_000)
    assert heights[kept.index(4322)] == 9.0 and heights[kept.index(7778)] == -9.0
    assert thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_panels_have_names_of_their_own():
    names = [panel.name for panel in PANELS]
    assert len(set(names)) == len(names)


def test_a_moving_mean_is_the_mean_of_a_tenth():
    values = [float(n % 7) for n in range(60)]
    smooth = moving_mean(values)
    # Three points on each side; at the ends those that are there.
    assert smooth[30] == pytest.approx(sum(values[27:34]) / 7) and smooth[0] == pytest.approx(sum(values[:4]) / 4)
    assert len(smooth) == 60 and smooth[-1] == pytest.approx(sum(values[-4:]) / 4)
    assert moving_mean(values[:19]) is None and moving_mean([2.5] * 20) == [2.5] * 20
