"""Gains against costs and against the teacher, and the sentences on top: by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.support.report_rows import ledger, markdown_of, result
from verl_s2d.report.story import story
from verl_s2d.report.write import RowResult, build_report
from verl_s2d.stages.evaluate.statistics import gain_share


def entry(
    digest: str, model: str | None, symbol: str = "", teacher: str = "", gpus: int = 0, kind: str = "grpo"
) -> dict:
    spent = {"labels": 0, "verifier_calls": 0, "sampled_tokens": 0, "teacher_scored_tokens": 0}
    return {
        **{"kind": kind, "name": digest, "digest": digest, "seconds": 1800.0, "updates": 1, "model": model},
        **{
            "symbol": symbol,
            "teachers": {"teacher": teacher} if teacher else {},
            "spent": spent,
            "machine": machine(gpus),
        },
    }


def machine(gpus: int) -> dict:
    return {"device": "cuda", "gpus": gpus, "gpu": "NVIDIA H200", "cpu": "AMD EPYC", "cores": 16, "memory_gib": 128.4}


def row(name: str, right: tuple[int, ...], stages=(), *, seed: int = 0, **spent) -> RowResult:
    """A row whose model is that of its last stage, or the student."""
    model = stages[-1]["digest"] if stages else "student"
    evaluation = entry(f"{name}{seed}", spent.pop("model", model), kind="evaluate")
    return RowResult(name, seed, result(*right), ledger(**spent), [*stages, evaluation])


def rows(gpus: int = 0) -> list[RowResult]:
    """Cold 25 %, direct 50 %, the bridge 62.5 % from a teacher of 100 %."""
    teacher, direct = entry("t", "teacher", "RL(1h)", gpus=gpus), entry("d", "student", "RL(all)", gpus=gpus)
    bridge = entry("b", "student", "2b", "t", gpus)
    return [
        row("cold-student", (1, 1)),
        row("direct-grpo", (2, 2), [direct], verifier_calls=1000, seconds=1800.0),
        row("bridge-only-1h", (2, 3), [teacher, bridge], verifier_calls=500, seconds=3600.0),
        row("teacher-rl-1h", (4, 4), [teacher], verifier_calls=500, seconds=1800.0),
    ]


def test_points_by_cost_and_share_of_the_teachers_gain():
    cold, direct, bridge, teacher = build_report(rows()).data["rows"]
    assert cold["gains"]["eval"]["points"] is None and teacher["gains"]["eval"]["points"] is None
    assert direct["gains"]["eval"]["points"] == 0.25 and direct["gains"]["eval"]["share"] is None
    gain = bridge["gains"]["eval"]
    assert (gain["points"], gain["per_1000_calls"], gain["per_hour"], gain["per_gpu_hour"]) == (
        0.375,
        0.75,
        0.375,
        None,
    )
    share = gain["share"]
    # (25, 50) of (75, 75) on the two problems: a resample of the first alone has a third, of the second two thirds.
    assert share["teacher"] == "teacher-rl-1h" and share["mean"] == pytest.approx(0.5)
    assert share["interval"] == pytest.approx([1 / 3, 2 / 3])
    text = markdown_of(build_report(rows()))
    assert "| bridge-only-1h | +37.5 | +75 | +37.5 | 50 % (33 to 67) | teacher-rl-1h |" in text
    assert "| direct-grpo | +25.0 | +25 | +50 | - | - |" in text


def test_gpu_hours_are_wall_time_times_gpus():
    report = build_report(rows(gpus=8))
    _, direct, bridge, _ = report.data["rows"]
    assert (direct["gpu_hours"], bridge["gpu_hours"]) == (4.0, 8.0)
    assert bridge["gains"]["eval"]["per_gpu_hour"] == 0.375 / 8
    assert "| row | points gained | per 1,000 verifier calls | per GPU-hour |" in markdown_of(report)
    assert "GPU-hours" in next(p.about for s in report.sections for p in s.plots if p.name == "cost-0")
    assert "8 x NVIDIA H200; 16 cores of AMD EPYC, 128 GiB\n" in markdown_of(report)
    unknown = rows(gpus=8)
    unknown[1].stages[0]["machine"] = {}
    assert build_report(unknown).data["rows"][1]["gpu_hours"] is None


def test_a_share_is_that_of_a_direct_bootstrap():
    generator = np.random.default_rng(3)
    cold, lead = generator.uniform(0, 0.5, 40), generator.uniform(0, 0.5, 40)
    student = cold + lead * generator.uniform(0, 1.2, 40)
    found = gain_share([(cold, cold + lead, student)], resamples=4000)
    drawn = generator.integers(40, size=(4000, 40))
    expected = np.quantile((student - cold)[drawn].mean(1) / lead[drawn].mean(1), [0.025, 0.975])
    assert found.mean == pytest.approx((student - cold).mean() / lead.mean())
    assert [found.low, found.high] == pytest.approx(expected, abs=0.02)


def test_a_teacher_without_a_clear_gain_has_no_share():
    assert gain_share([([0.5, 0.5, 0.5], [0.5, 1.0, 0.0], [1.0, 1.0, 1.0])]) is None
    assert gain_share([([0.5] * 9, [0.25] * 9, [1.0] * 9)]) is None
    assert gain_share([]) is None


def test_seeds_are_resampled_apart():
    """Two problems a seed: the interval of both seeds is within that of one, whose resamples may be one problem."""
    one = ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0])
    both = gain_share([one, one])
    pairs = [np.mean(draws) for draws in product([0, 0.5, 0.5, 1], repeat=2)]
    assert both.mean == 0.5 and both.low >= min(pairs) and both.high <= max(pairs)


def told(report) -> str:
    return " ".join(story(report.data))


def test_the_sentences_of_one_seed():
    text = told(build_report(rows()))
    assert "On eval bridge-only-1h is the best of 2 trained rows: avg@4 62.5 %, 37.5 points above cold-student." in text
    assert "Against direct-grpo that is +12.5 points, 95 % interval +0.0 to +25.0 over problems" in text
    assert "which contains 0: no difference is shown" in text
    assert "0.5 times the verifier calls (500 against 1,000) and 2.0 times the minutes (60.0 against 30.0)" in text
    assert "one seed" in text and "teacher-rl-1h" not in text, "a teacher is no candidate"
    assert build_report(rows()).table().startswith("In short\nOn eval bridge-only-1h")


def test_the_sentences_where_direct_grpo_is_best_and_of_several_seeds():
    made = [
        row(name, right, [entry(f"{name}{seed}m", "student", "RL(all)")], seed=seed, verifier_calls=calls, seconds=60.0)
        for seed, lift in enumerate((0, 1, 0))
        for name, right, calls in (("direct-grpo", (3, 3), 10), ("bridge", (1, 2 + lift), 0))
    ]
    text = told(build_report(made))
    assert "direct-grpo is the best of 2 trained rows: avg@4 75.0 %." in text and "one seed" not in text
    assert "Against bridge that is +33.3 points, 95 % interval +" in text and "over seeds" in text
    assert "more verifier calls (10 against 0)" in text


def test_a_row_alone_is_told_with_what_is_missing_to_judge_it():
    lone = [made for made in rows() if made.name == "direct-grpo"]
    text = told(build_report(lone))
    assert text.startswith("On eval direct-grpo is trained: avg@4 50.0 %.")
    assert "--rows cold-student,direct-grpo adds rows to compare it with" in text and "Against" not in text


def test_nothing_is_told_of_untrained_rows():
    assert story(build_report([row("cold-student", (1, 2)), row("teacher", (3, 4), model="t")]).data) == []
