"""A stage that an alarm stops: its process ends, its best checkpoint is its result, and it is not started again."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import FakeStages, SimulatedStages, write_problems
from tests.support.workflow.runs import Lines, build, directory, project
from verl_s2d.checks import check_plan
from verl_s2d.errors import UserError
from verl_s2d.report.command_text import status_text
from verl_s2d.report.inputs import finished_rows
from verl_s2d.report.views import status_view
from verl_s2d.report.write import Facts, build_report
from verl_s2d.stages import stages
from verl_s2d.workflow.store.manifest import is_built, read_manifest, write_manifest
from verl_s2d.workflow.store.saved_weights import export_problem
from verl_s2d.workflow.watch import early_stop
from verl_s2d.workflow.watch.alarm_log import recorded


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


NAME = "student-rl-all"


def stopping(tmp_path, monkeypatch, logged, *, steps=6, save_every=1, **changes):
    """A plan whose student RL logs what is given for its steps."""
    monkeypatch.setenv("FAKE_METRICS", json.dumps({"grpo": logged}))
    alarms = {"not_finite": "stop", "score_collapse": {"window": 3, "patience": 1, "spreads": 1, "action": "stop"}}
    stage = {"stages__student_rl__steps": steps, "stages__student_rl__save_every": save_every}
    return project(tmp_path, rows=["direct-grpo"], **{"alarms": alarms, **stage, **changes})


def killed_before_the_manifest(node, *arguments, **more):
    if node.name == NAME:
        raise KeyboardInterrupt
    write_manifest(node, *arguments, **more)


def stopped_at(plan):
    manifest = read_manifest(directory(plan, NAME))
    return (manifest["stopped"]["kept"], manifest["stopped"]["steps"])


def test_a_running_stage_is_stopped_and_its_last_good_checkpoint_is_the_result(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "hang@5"}))
    monkeypatch.setattr("verl_s2d.workflow.watch.watchdog._LOOK_SECONDS", 0.1)
    monkeypatch.setattr("verl_s2d.workflow.stage_process._GRACE_SECONDS", 0.5)
    plan, progress = stopping(tmp_path, monkeypatch, {"4": {"actor/loss": None}}), Lines()
    launcher = FakeStages()
    assert build(plan, launcher, progress) == []
    stage = directory(plan, NAME)
    assert stopped_at(plan) == (3, 4)
    assert export_problem(stage / "model") is None and not (stage / "checkpoints").exists()
    assert any("ALARM, not finite: actor/loss at step 4" in note for note in progress.notes)
    assert not plan.missing(), "the evaluation has read the model"
    ledger = read_manifest(stage)["ledger"]
    assert ledger["verifier_calls"] == 4 and ledger["updates"] == 4 and ledger["sampled_tokens"] == 4 * 20
    again = FakeStages()
    assert build(plan, again) == [] and again.started == []


def test_it_is_not_started_again_when_the_run_ended_before_its_manifest(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"4": {"actor/loss": None}})
    monkeypatch.setattr("verl_s2d.workflow.lane.write_manifest", killed_before_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        build(plan, SimulatedStages())
    stage = directory(plan, NAME)
    assert not is_built(plan.order[-2], stage) and early_stop.read(stage)["kept"] == 3
    monkeypatch.undo()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    launcher = SimulatedStages()
    assert build(plan, launcher) == []
    assert stage.name not in launcher.started and stopped_at(plan) == (3, 6)


def test_the_best_checkpoint_by_validation_is_kept(tmp_path, monkeypatch):
    scores = {1: 0.3, 2: 0.5, 3: 0.45, 4: 0.1}
    logged = {str(step): {"val-core/held/acc/mean@4": score} for step, score in scores.items()}
    plan = stopping(tmp_path, monkeypatch, logged)
    assert build(plan, SimulatedStages()) == []
    manifest = read_manifest(directory(plan, NAME))
    assert manifest["stopped"]["alarm"]["alarm"] == "score_collapse"
    assert stopped_at(plan) == (2, 6) and manifest["stopped"]["score"] == 0.5


def test_stages_1_and_3_are_validated_on_problems_of_their_own(tmp_path, monkeypatch):
    write_problems(tmp_path / "validation.parquet", range(4), prefix="validation")
    plan = stopping(tmp_path, monkeypatch, {}, data__validation="validation.parquet")
    node = next(n for n in plan.order if n.name == NAME)
    arguments = stages()["grpo"].command(node, plan.context, 1).argv
    assert "trainer.test_freq=-1" in arguments
    more = {"data__validation": "validation.parquet", "stages__student_rl__validate_every": 3}
    plan = stopping(tmp_path, monkeypatch, {}, **more)
    validated = next(n for n in plan.order if n.name == NAME)
    arguments = stages()["grpo"].command(validated, plan.context, 1).argv
    assert "trainer.test_freq=3" in arguments and f"data.val_files={tmp_path / 'validation.parquet'}" in arguments
    assert validated.digest != node.digest
    check_plan(plan)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [("problem", "among the training problems"), ("held", "among the validation problems")],
)
def test_validation_problems_are_neither_trained_nor_evaluated_on(tmp_path, monkeypatch, prefix, words):
    write_problems(tmp_path / "validation.parquet", range(4), prefix=prefix)
    plan = stopping(tmp_path, monkeypatch, {}, data__validation="validation.parquet")
    with pytest.raises(UserError, match=words):
        check_plan(plan)


def test_validation_needs_problems(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nothing to validate on"):
        stopping(tmp_path, monkeypatch, {}, stages__student_rl__validate_every=3)


def test_without_validation_the_last_checkpoint_from_before_the_alarm_is_kept(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"5": {"actor/loss": None}}, save_every=2)
    assert build(plan, SimulatedStages()) == []
    assert stopped_at(plan) == (4, 6)


def test_without_a_checkpoint_from_before_the_alarm_the_stage_fails_once_and_for_all(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"2": {"actor/loss": None}}, save_every=2, cluster__retries=2)
    launcher = SimulatedStages()
    (failure,) = build(plan, launcher)
    assert "no checkpoint is older" in str(failure) and "save_every" in str(failure)
    (failure,) = build(plan, launcher)
    assert "no checkpoint is older" in str(failure)
    assert launcher.started.count(directory(plan, NAME).name) == 1


def test_a_trainer_that_gives_up_after_the_alarm_leaves_its_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@5"}))
    plan = stopping(tmp_path, monkeypatch, {"4": {"actor/grad_norm": None}})
    assert build(plan, SimulatedStages()) == []
    assert stopped_at(plan) == (3, 4)


def test_an_alarm_that_a_kill_was_faster_than_stops_the_next_attempt(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"3": {"actor/loss": None}})
    monkeypatch.setattr("verl_s2d.workflow.stage_process._alarmed", lambda *_: False)
    monkeypatch.setattr("verl_s2d.workflow.lane.write_manifest", killed_before_the_manifest)
    monkeypatch.setattr("verl_s2d.stages.shared.training_stage.TrainingStage.finalize", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        build(plan, SimulatedStages())
    monkeypatch.undo()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    tracker = directory(plan, NAME) / "checkpoints" / "latest_checkpointed_iteration.txt"
    tracker.write_text("4")
    launcher = SimulatedStages()
    assert build(plan, launcher) == []
    assert directory(plan, NAME).name not in launcher.started and stopped_at(plan)[0] == 2


def test_an_alarm_that_only_logs_changes_nothing_and_is_shown(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"4": {"actor/loss": None}, "5": {"actor/loss": None}}, alarms={})
    assert build(plan, SimulatedStages()) == []
    stage = directory(plan, NAME)
    (alarm,) = recorded(stage)
    assert (alarm["alarm"], alarm["step"], alarm["action"]) == ("not_finite", 4, "log")
    manifest = read_manifest(stage)
    assert "stopped" not in manifest and manifest["ledger"]["updates"] == 6
    assert "ALARM, not finite: actor/loss at step 4" in status_text(status_view(plan))


def test_status_says_what_the_result_is(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"4": {"actor/loss": None}})
    build(plan, SimulatedStages())
    assert "ended at step 6 by an alarm, the result is step 3" in status_text(status_view(plan))


def test_the_report_has_every_alarm_and_what_became_of_it(tmp_path, monkeypatch):
    plan = stopping(tmp_path, monkeypatch, {"2": {"val-core/held/acc/mean@4": 0.25}, "4": {"actor/loss": None}})
    build(plan, SimulatedStages())
    alarms = build_report(finished_rows(plan), Facts("tiny")).data["alarms"]
    assert [(a["stage"], a["step"], a["alarm"]) for a in alarms] == [(NAME, 4, "not_finite"), (NAME, 6, "not_finite")]
    assert alarms[1]["text"].endswith("its result is the checkpoint of step 2, validation score 0.25")
