"""The runner with real processes: build, resume, stall, kill, lock, interrupt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.workflow.project import FakeStages, write_project, write_scripts
from tests.support.workflow.runs import Lines, build, directory, project
from verl_s2d.errors import UserError
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.inputs import finished_rows
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow import save_request
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.hosts.process import kill_marked, marked_processes
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.store.manifest import MANIFEST, is_built, read_manifest
from verl_s2d.workflow.store.run_directory import opened, read_record


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


def test_all_stages_are_built_and_a_second_run_builds_nothing(tmp_path):
    plan, launcher = project(tmp_path, rows=["cold-student", "half-split"]), FakeStages()
    assert build(plan, launcher) == []
    assert len(launcher.started) == len(plan.order) and not plan.missing()
    again = FakeStages()
    assert build(plan, again) == [] and again.started == []
    opd = directory(plan, "opd-1h")
    assert (opd / "model" / "model.safetensors").is_file() and not (opd / "checkpoints").exists()
    assert "starting at 0" in (opd / "log.txt").read_text()


def test_ledgers(tmp_path):
    plan = project(tmp_path, rows=["cold-student", "half-split"])
    build(plan)
    ledger = {n.name: read_manifest(plan.context.directory(n))["ledger"] for n in plan.order}
    assert ledger["teacher-rl-1h"]["labels_read"] == [f"problem-{i}" for i in (1, 2, 3, 4)]
    assert ledger["teacher-rl-1h"]["verifier_calls"] == 4
    assert ledger["teacher-rl-1h"]["sampled_tokens"] == 4 * round(2.5 * 4 * 2)
    assert ledger["teacher-rl-1h"]["updates"] == 4
    assert ledger["rollouts-1h"]["sampled_tokens"] == 100
    warmup = ledger["warmup-1h"]
    assert (warmup["labels_read"], warmup["verifier_calls"], warmup["sampled_tokens"]) == ([], 0, 0)
    assert (warmup["teacher_scored_tokens"], warmup["updates"]) == (28, 4)
    assert (ledger["opd-1h"]["sampled_tokens"], ledger["opd-1h"]["teacher_scored_tokens"]) == (20, 24)
    assert ledger["opd-1h"]["labels_read"] == [] and ledger["opd-1h"]["verifier_calls"] == 0
    rows = {r.name: r for r in finished_rows(plan)}
    half = rows["half-split"].ledger
    assert half["sampled_tokens"] == 80 + 100 + 20 + 80 and half["verifier_calls"] == 8 and half["updates"] == 16
    assert rows["cold-student"].ledger["updates"] == 0
    assert [s["kind"] for s in rows["half-split"].stages][-1] == "evaluate"


def test_a_failed_stage_stops_the_run_and_the_next_run_resumes_inside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"opd": "crash@4"}))
    plan, progress = project(tmp_path), Lines()
    (failure,) = build(plan, progress=progress)
    assert "opd-1h failed with exit code 3" in str(failure) and "out of luck" in str(failure)
    assert str(directory(plan, "opd-1h") / "log.txt") in str(failure)
    assert not is_built(plan.order[-1], directory(plan, "evaluate-half-split"))
    finished = {
        n.name: (plan.context.directory(n) / MANIFEST).stat().st_mtime_ns for n in plan.order if n not in plan.missing()
    }
    assert "warmup-1h" in finished
    launcher = FakeStages()
    assert build(plan, launcher) == []
    assert len(launcher.started) == len(plan.order) - len(finished)
    assert "starting at 2" in (directory(plan, "opd-1h") / "log.txt").read_text()
    for name, written in finished.items():
        assert (directory(plan, name) / MANIFEST).stat().st_mtime_ns == written
    manifest = read_manifest(directory(plan, "opd-1h"))
    assert manifest["attempts"] == 2 and manifest["ledger"]["sampled_tokens"] == 20


def test_labels_read_in_an_attempt_that_failed_count(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@4"}))
    plan = project(tmp_path, rows=["direct-grpo"], cluster__retries=1)
    assert build(plan) == []
    ledger = read_manifest(directory(plan, "student-rl-all"))["ledger"]
    assert ledger["verifier_calls"] == 3 + 2 and len(ledger["labels_read"]) == 4
    assert ledger["sampled_tokens"] == 4 * 20


def test_keep_going_builds_independent_branches(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"opd": "crash@1"}))
    plan, progress = project(tmp_path, rows=["half-split", "direct-grpo"]), Lines()
    assert len(build(plan, progress=progress, keep_going=True)) == 1
    assert [r.name for r in finished_rows(plan)] == ["direct-grpo"]
    assert any("needs a stage that failed" in n for n in progress.notes)


def test_a_stalled_stage_is_stopped_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "hard-hang@2"}))
    monkeypatch.setattr("verl_s2d.workflow.watch.watchdog._LOOK_SECONDS", 0.2)
    monkeypatch.setattr("verl_s2d.workflow.stage_process._GRACE_SECONDS", 0.5)
    plan = project(tmp_path, rows=["direct-grpo"], cluster__step_minutes=0.2)
    (failure,) = build(plan)
    assert "stalled" in str(failure) and "cluster.step_minutes" in str(failure)
    assert marked_processes(read_record(tmp_path / "run")["id"]) == []


def test_a_stage_without_an_export_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "no-export"}))
    plan = project(tmp_path, rows=["direct-grpo"])
    (failure,) = build(plan)
    assert "no Hugging Face weights" in str(failure)
    assert len(plan.missing()) == 2


def test_finished_work_is_not_repeated_when_only_the_manifest_is_missing(tmp_path):
    plan = project(tmp_path)
    build(plan)
    for name in ("rollouts-1h", "student-rl-2h", "evaluate-half-split"):
        (directory(plan, name) / MANIFEST).unlink()
    parts = directory(plan, "rollouts-1h") / ".samples"
    parts.mkdir()
    launcher = FakeStages()
    assert build(plan, launcher) == [] and launcher.started == []
    assert not plan.missing() and not parts.exists()


def test_a_torn_checkpoint_tracker_is_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@3"}))
    plan = project(tmp_path, rows=["direct-grpo"])
    build(plan)
    (directory(plan, "student-rl-all") / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("")
    assert build(plan) == []
    assert "starting at 2" in (directory(plan, "student-rl-all") / "log.txt").read_text()


def test_checkpoints_of_another_cluster_size_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@3"}))
    plan = project(tmp_path, rows=["direct-grpo"])
    build(plan)
    saved = directory(plan, "student-rl-all") / "checkpoints" / "global_step_2" / "actor"
    with zipfile.ZipFile(saved / "model_world_size_4_rank_0.pt", "w"):
        pass
    (failure,) = build(plan)
    assert "checkpoints of 4 processes" in str(failure)


def test_what_scripts_make_is_checked_before_anything_is_trained(tmp_path):
    write_scripts(tmp_path)
    changes = {
        "student": {"script": "pretrain.py", "args": {"size": "s"}},
        "teacher": {"script": "pretrain.py", "args": {"size": "t"}},
        "data": {
            "source": {"script": "tasks.py", "args": {"prefix": "problem"}},
            "labels": 16,
            "prompt_tokens": 8,
            "response_tokens": 4,
        },
    }
    plan, launcher = project(tmp_path, rows=["cold-student", "half-split"], **changes), FakeStages()
    with pytest.raises(UserError, match="evaluation problems"):
        build(plan, launcher)
    assert {Path(a[0]).name for a in launcher.started} <= {"pretrain.py", "tasks.py", "-m"}
    changes["data"]["source"]["args"] = {}
    plan = project(tmp_path, rows=["cold-student", "half-split"], **changes)
    launcher = FakeStages()
    assert build(plan, launcher) == []
    evaluations = [a for a in launcher.started if a[0].endswith("sample_and_score")]
    assert len(evaluations) == 2 and all(any(x.startswith("set.held=") for x in a) for a in evaluations)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    plan = project(tmp_path, rows=["direct-grpo"])
    with opened(tmp_path / "run", "tiny"), pytest.raises(UserError, match="Another run"):
        build(plan)


@pytest.mark.parametrize("content", ["other recipe", "not ours", "a file"])
def test_directories_of_others_are_refused(tmp_path, content):
    plan, run = project(tmp_path, rows=["direct-grpo"]), tmp_path / "run"
    if content == "other recipe":
        with opened(run, "another"):
            pass
    elif content == "not ours":
        run.mkdir()
        (run / "thesis.tex").touch()
    else:
        run.touch()
    with pytest.raises(UserError, match="run directory"):
        build(plan)


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.workflow.project import FakeStages
from tests.support.workflow.runs import Lines
from verl_s2d.workflow.failures import Interrupted
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.planning import make_plan
from verl_s2d.recipe.load import load_recipe
from verl_s2d.workflow.runner import run_plan
plan = make_plan(load_recipe({recipe!r}), run_dir=Path({run!r}), rows=["direct-grpo"])
try:
    sys.exit(len(run_plan(plan, Lines(), launcher=FakeStages())))
except Interrupted as error:
    sys.exit(128 + error.number)
"""


def start_driver(tmp_path, behaviour, *, save_every=2, grace=25):
    recipe = write_project(tmp_path, stages__student_rl__save_every=save_every, cluster__grace_seconds=grace)
    root = str(ROOT)
    code = DRIVER.format(root=root, recipe=str(recipe), run=str(tmp_path / "run"))
    environment = {**os.environ, "FAKE": json.dumps({"grpo": behaviour})}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["direct-grpo"])
    log = directory(plan, "student-rl-all") / "log.txt"
    deadline = time.monotonic() + 30
    while not (log.exists() and "starting" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return plan, process


def wait_for_step(plan, least: int) -> int:
    """The newest step of the stage in work, once it has done `least`."""
    deadline = time.monotonic() + 30
    while (step := max(read_metrics(directory(plan, "student-rl-all")), default=0)) < least:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupt_stops_everything(tmp_path, number):
    plan, process = start_driver(tmp_path, "slow")
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert marked_processes(read_record(tmp_path / "run")["id"]) == []
    assert build(plan) == []


def test_sigterm_lets_the_stage_save_the_step_that_it_is_in(tmp_path):
    plan, process = start_driver(tmp_path, "slow", save_every=100)
    step = wait_for_step(plan, 2)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert marked_processes(read_record(tmp_path / "run")["id"]) == []
    stage = directory(plan, "student-rl-all")
    saved = checkpoints.completed_step(stage / "checkpoints")
    assert saved >= step and saved == max(read_metrics(stage)), "nothing that was done is lost"
    progress = Lines()
    assert build(plan, progress=progress) == []
    assert f"starting at {saved}" in (stage / "log.txt").read_text()
    assert read_manifest(stage)["ledger"]["updates"] == 4 and not save_request.asked(stage / "checkpoints")


@pytest.mark.parametrize("grace", [0, 0.5])
def test_a_stage_that_does_not_save_in_time_is_stopped_all_the_same(tmp_path, grace):
    plan, process = start_driver(tmp_path, "deaf", save_every=2, grace=grace)
    wait_for_step(plan, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert marked_processes(read_record(tmp_path / "run")["id"]) == []
    assert build(plan) == [] and not plan.missing()


def test_kill_of_the_driver_leaves_nothing_that_disturbs_the_next_run(tmp_path):
    plan, process = start_driver(tmp_path, "hang@3")
    time.sleep(0.5)
    process.kill()
    process.wait(10)
    left = marked_processes(read_record(tmp_path / "run")["id"])
    assert left, "the stage outlives the driver that was killed"
    progress = Lines()
    assert build(plan, progress=progress) == []
    assert any("left behind" in n for n in progress.notes)
    assert marked_processes(read_record(tmp_path / "run")["id"]) == []
    manifest = read_manifest(directory(plan, "student-rl-all"))
    assert manifest["attempts"] == 2 and "starting at 2" in (directory(plan, "student-rl-all") / "log.txt").read_text()


def test_a_copy_of_a_run_ends_no_process_of_the_original(tmp_path):
    plan, process = start_driver(tmp_path, "hang@3")
    wait_for_step(plan, 1)
    original = read_record(tmp_path / "run")["id"]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with opened(tmp_path / "copy", plan.recipe.name) as copied:
        assert marked_processes(original) and not marked_processes(copied)
    with opened(tmp_path / "copy", plan.recipe.name) as again:
        assert again == copied != original
    process.kill()
    process.wait(10)
    (tmp_path / "run").rename(tmp_path / "moved")
    with opened(tmp_path / "moved", plan.recipe.name) as moved:
        assert kill_marked(moved), "what a killed run has left is found where the directory is now"


def test_stage_failed_shows_what_matters(tmp_path):
    failure = StageFailed("It broke.", log=tmp_path / "log.txt", lines=["ValueError: no"])
    assert str(failure) == f"It broke.\n  | ValueError: no\n  whole log: {tmp_path / 'log.txt'}"
