"""The parts of benchmarks/trl_bridge that need no TRL: settings, the reading of a run, the clock and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.trl_bridge.bridge_plan import BridgePlan, Inputs, Sampling, Training
from benchmarks.trl_bridge.our_stages import RowStages
from benchmarks.trl_bridge.processor_clock import ProcessorClock, seconds_within
from benchmarks.trl_bridge.recipe_settings import STAGES, bridge_plan
from benchmarks.trl_bridge.stage_figures import COMMAND, TITLES, StageFigures, side_by_side
from benchmarks.trl_bridge.update_order import update_prompts
from tests.support.paths import ROOT
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe

QUICKSTART = ROOT / "recipes" / "quickstart" / "quickstart.yaml"
INPUTS = Inputs("teacher", "student", "1h.parquet", "2h.parquet", "eval.parquet")


def plan_of(*overrides: str) -> BridgePlan:
    return bridge_plan(load_recipe(QUICKSTART, overrides), INPUTS, seed=3)


def test_settings_are_those_of_the_recipe():
    written = yaml.safe_load(QUICKSTART.read_text())
    plan = plan_of()
    for name in STAGES:
        stage, made = written["stages"][name], getattr(plan, name)
        verl = {key.removeprefix("actor_rollout_ref.actor."): value for key, value in stage["verl"].items()}
        assert (made.steps, made.save_every) == (stage["steps"], stage["save_every"])
        assert made.prompts == verl["data.train_batch_size"]
        assert made.sampling.samples == verl.get("actor_rollout_ref.rollout.n", 1)
        assert made.learning_rate == verl["optim.lr"] and made.weight_decay == verl["optim.weight_decay"]
        assert made.warmup_steps == verl.get("optim.lr_warmup_steps", 0) and made.clip_grad == 1.0
    assert plan.rollouts == Sampling(written["stages"]["rollouts"]["per_prompt"], 1.0, 1.0)
    assert plan.evaluation == Sampling(written["evaluation"]["samples"], 1.0, 1.0)
    assert plan.response_tokens == written["data"]["response_tokens"]


def test_a_plan_is_read_as_it_was_written(tmp_path: Path):
    plan = plan_of("stages.opd.steps=2")
    plan.write(tmp_path / "plan.json")
    assert BridgePlan.read(tmp_path / "plan.json") == plan and plan.opd.steps == 2


def test_what_trl_is_not_told_is_refused():
    recipe = load_recipe(QUICKSTART)
    stages = recipe.stages
    assert stages.opd is not None and stages.rollouts is not None
    longer = stages.opd.model_copy(update={"verl": {**stages.opd.verl, "actor_rollout_ref.actor.ppo_epochs": 2}})
    for key, changed in {
        "stages.opd.verl.actor_rollout_ref.actor.ppo_epochs": {"opd": longer},
        "stages.student_rl": {"student_rl": None},
        "stages.rollouts.per_prompt": {"rollouts": stages.rollouts.model_copy(update={"per_prompt": None})},
    }.items():
        broken = recipe.model_copy(update={"stages": stages.model_copy(update=changed)})
        with pytest.raises(UserError) as refused:
            bridge_plan(broken, INPUTS, seed=0)
        assert refused.value.key == key


def test_updates_hold_each_prompt_as_often_as_it_is_sampled():
    training = Training(5, 1, 4, Sampling(3, 1.0), 1e-3, 0, 0.0, 1.0)
    prompts = [f"p{i}" for i in range(10)]
    rows = list(update_prompts(prompts, training, seed=1))
    updates = [rows[start : start + 12] for start in range(0, 60, 12)]
    assert len(rows) == 60 and all(sorted(Counter(update).values()) == [3] * 4 for update in updates)
    assert not set(updates[0]) & set(updates[1]), "a pass has each prompt once"
    assert rows == list(update_prompts(prompts, training, seed=1)) != list(update_prompts(prompts, training, seed=2))


def finished(run: Path, kind: str, digest: str, inputs: dict[str, str], **more: Any) -> Path:
    """Write a finished stage; `inputs` are role -> kind-digest."""
    stage = run / "stages" / f"{kind}-{digest[:12]}"
    (stage / "attempts").mkdir(parents=True)
    ledger = {"sampled_tokens": 0, "teacher_scored_tokens": 0, "updates": 0} | more.pop("ledger", {})
    told = {role: dict(zip(("kind", "digest"), used.split("-"), strict=True)) for role, used in inputs.items()}
    manifest = {"kind": kind, "name": kind, "digest": digest, "inputs": told, "ledger": ledger}
    manifest |= {"seconds": 5.0, "attempts": 1, "outputs": []} | more
    (stage / "manifest.json").write_text(json.dumps(manifest))
    (stage / "attempts" / "attempt-1.json").write_text(json.dumps({"started": 100.0, "ended": 105.0, "exit": 0}))
    if kind in ("grpo", "opd", "warmup"):
        (stage / "model").mkdir()
    return stage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of the row half-split, with the evaluation of its model and of the given student."""
    names = ("teacher", "student", "data", "slices", "teacher_rl", "rollouts", "warmup", "opd", "student_rl")
    digest = {name: f"{index:064d}"[::-1] for index, name in enumerate(names, 1)}
    script = {name: f"script-{digest[name]}" for name in ("teacher", "student", "data")}
    slices, teacher = f"slices-{digest['slices']}", f"grpo-{digest['teacher_rl']}"
    for name in script:
        finished(tmp_path, "script", digest[name], {})
    finished(tmp_path, "slices", digest["slices"], {"source": script["data"]}, settings={"seed": 3})
    finished(tmp_path, "grpo", digest["teacher_rl"], {"model": script["teacher"], "slices": slices})
    rollouts = {"sampled_tokens": 90}
    finished(tmp_path, "rollouts", digest["rollouts"], {"model": teacher, "slices": slices}, ledger=rollouts)
    read = {"model": script["student"], "rollouts": f"rollouts-{digest['rollouts']}", "teacher": teacher}
    finished(tmp_path, "warmup", digest["warmup"], read, ledger={"teacher_scored_tokens": 900, "updates": 40})
    read = {"model": f"warmup-{digest['warmup']}", "slices": slices, "teacher": teacher}
    finished(tmp_path, "opd", digest["opd"], read, ledger={"sampled_tokens": 70, "teacher_scored_tokens": 71})
    last = finished(tmp_path, "grpo", digest["student_rl"], {"model": f"opd-{digest['opd']}", "slices": slices})
    for name, model, right in (("a", f"grpo-{digest['student_rl']}", 3), ("b", script["student"], 1)):
        stage = finished(tmp_path, "evaluate", name * 64, {"model": model})
        problems = [{"id": "p", "correct": right, "samples": 4}, {"id": "q", "correct": 1, "samples": 4}]
        answers = {"mean_tokens": 3.5, "samples": 4, "n_problems": 2}
        result = {"sets": {"eval": answers}, "per_problem": {"eval": problems}}
        (stage / "result.json").write_text(json.dumps(result))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "half-split").symlink_to(last / "model")
    return tmp_path


def test_a_run_is_read_through_its_manifests(run: Path):
    row = RowStages(run)
    figures = {one.stage: one for one in row.figures()}
    assert set(figures) == {*TITLES, "evaluate student", "evaluate student_rl"}
    assert row.seed() == 3 and figures["rollouts"].seconds == 5.0
    assert [figures[stage].tokens for stage in ("rollouts", "warmup", "opd")] == [90, 900, 70]
    evaluated = figures["evaluate student_rl"]
    assert evaluated.tokens == 28 and evaluated.accuracy == pytest.approx((0.5, 0.25))
    inputs = row.inputs()
    assert Path(inputs.teacher).name.startswith("script-1") and Path(inputs.student).name.startswith("script-2")
    assert Path(inputs.second_half).parent == row.slices.directory


def test_a_run_without_the_row_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="half-split"):
        RowStages(tmp_path)


def test_seconds_are_interpolated_within_spans():
    readings = [(10.0, 0.0), (20.0, 5.0), (30.0, 25.0)]
    assert seconds_within(readings, [(15.0, 25.0)]) == pytest.approx(12.5)
    assert seconds_within(readings, [(10.0, 20.0), (25.0, 40.0)]) == pytest.approx(15.0)
    assert seconds_within(readings, [(9.0, 20.0)]) is None and seconds_within(readings, []) is None


def test_the_clock_counts_processes_that_their_parents_left():
    """The inner process computes for a quarter of a second, says so, and waits until the clock was read."""
    inner = "import os, time\nwhile time.process_time() < 0.25: pass\nprint(os.getpid(), flush=True); input()"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}])"
    with ProcessorClock() as clock:
        parent = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert parent.stdin is not None and parent.stdout is not None
        orphan = int(parent.stdout.readline())
        assert parent.wait() == 0
    seconds = clock.seconds([(clock.readings[0][0], clock.readings[-1][0])])
    parent.communicate()
    assert os.waitpid(orphan, 0)[0] == orphan, "it became a child of this process"
    assert seconds is not None and seconds >= 0.2


def test_the_table_has_both_sides_in_a_cell():
    def side(seconds: float, processor: float | None, right: float) -> list[StageFigures]:
        stages = [StageFigures(stage, ((0.0, seconds),), 40, 600, processor=processor) for stage in TITLES]
        return [*stages, StageFigures("evaluate opd", ((0.0, 1.0),), 0, 8, {"p": right, "q": 0.5, "r": 0.5})]

    command = StageFigures(COMMAND, ((0.0, 900.0),), 0, 0, processor=300.0)
    text = side_by_side({"ours": side(60.0, None, 0.5), "TRL": [*side(30.0, 90.0, 0.2), command]})
    assert "| 1: GRPO, teacher | 1.00 / 0.50 | - / 1.50 | 40 / 40 | 600 / 600 | 10 / 20 |" in text
    assert "| all five | 5.00 / 2.50 | - / 7.50 | 200 / 200 | 3,000 / 3,000 | 10 / 20 |" in text
    assert "| whole command | - / 15.00 | - / 5.00 |" in text
    assert "| 2b: on-policy, reverse KL | 50.0 +- 0.0 | 40.0 +- 10.0 | -10.0 (-30.0 to +0.0) |" in text
