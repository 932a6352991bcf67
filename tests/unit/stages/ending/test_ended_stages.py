"""Stages that a rule ends in a run: what they are asked, what their manifest, status, ledger and report say."""

from __future__ import annotations

import json

import pytest

from tests.support.report_rows import markdown_of
from tests.support.workflow.project import FakeStages, SimulatedStages, write_problems
from tests.support.workflow.runs import Lines, build, directory, project
from verl_s2d.report.command_text import status_text
from verl_s2d.report.inputs import finished_rows, report_of
from verl_s2d.report.table_text import escaped
from verl_s2d.report.views import status_view
from verl_s2d.report.write import Facts
from verl_s2d.workflow.store.manifest import read_manifest, write_manifest

NAME = "opd-all-cold"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


def travelling(tmp_path, monkeypatch, *, until=None, row="opd-only", **changes):
    """A plan whose 2b has at most eight steps, and a travel of 0, .1, .2, ..."""
    logged = {str(step): {"s2d/travel": (step - 1) / 10} for step in range(1, 9)}
    monkeypatch.setenv("FAKE_METRICS", json.dumps({"opd": logged}))
    changes = {"stages__opd__steps": 8, "stages__opd__until": until or {"travel": 0.3}} | changes
    return project(tmp_path, rows=[row], **changes)


def node_of(plan, name=NAME):
    return next(node for node in plan.order if node.name == name)


def test_the_rule_reaches_the_trainer_and_the_digest(tmp_path, monkeypatch):
    plan = travelling(tmp_path, monkeypatch, until={"travel": 0.3, "plateau": {"of": "divergence", "window": 5}})
    node = node_of(plan)
    argv = node.stage.command(node, plan.context, 1).argv
    assert "+s2d.until.travel=0.3" in argv and "+s2d.travel=true" in argv
    assert "+s2d.until.plateau={of:divergence,window:5,slope_se:1.0}" in argv
    assert node.stage.describe(node).endswith("at most 8 steps")
    without = node_of(travelling(tmp_path, monkeypatch, stages__opd__until=None))
    assert "until" not in without.settings and without.digest != node.digest
    assert not [argument for argument in without.stage.command(without, plan.context, 1).argv if "until" in argument]


def test_a_stage_ends_by_its_rule_and_everybody_is_told_why(tmp_path, monkeypatch):
    plan, progress = travelling(tmp_path, monkeypatch), Lines()
    assert build(plan, SimulatedStages(), progress) == []
    manifest = read_manifest(directory(plan, NAME))
    reason = "travel 0.3 >= 0.3 at step 4"
    assert manifest["until"] == {"step": 4, "reason": reason} and "stopped" not in manifest
    assert manifest["ledger"]["updates"] == 4 and manifest["ledger"]["sampled_tokens"] == 4 * 5
    assert [note for note in progress.notes if f"{NAME} ended before its maximum: {reason}" in note]
    assert f"ended before its maximum: {reason}" in status_text(status_view(plan))
    report = report_of(finished_rows(plan), plan.context.run_dir, Facts("x"))
    assert escaped(reason) in markdown_of(report)
    assert [stage["until"] for stage in report.data["stages"] if stage["name"] == NAME] == [reason]
    assert not plan.missing()


def test_a_rule_that_does_not_hold_leaves_the_maximum_of_steps(tmp_path, monkeypatch):
    plan = travelling(tmp_path, monkeypatch, until={"travel": 0.9})
    assert build(plan, SimulatedStages()) == []
    manifest = read_manifest(directory(plan, NAME))
    assert "until" not in manifest and manifest["ledger"]["updates"] == 8


def test_a_rule_that_holds_at_the_last_step_ends_nothing_early(tmp_path, monkeypatch):
    plan = travelling(tmp_path, monkeypatch, until={"travel": 0.7})
    assert build(plan, SimulatedStages()) == []
    assert "until" not in read_manifest(directory(plan, NAME))


def test_it_is_not_started_again_when_the_run_ended_before_its_manifest(tmp_path, monkeypatch):
    def killed_before_the_manifest(node, *arguments, **more):
        if node.name == NAME:
            raise KeyboardInterrupt
        write_manifest(node, *arguments, **more)

    plan = travelling(tmp_path, monkeypatch)
    monkeypatch.setattr("verl_s2d.workflow.lane.write_manifest", killed_before_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        build(plan, SimulatedStages())
    monkeypatch.undo()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    again = SimulatedStages()
    assert build(plan, again) == [] and not [name for name in again.started if name.startswith("opd-")]
    assert read_manifest(directory(plan, NAME))["until"]["step"] == 4


def test_a_crashed_stage_ends_where_it_would_have_ended(tmp_path, monkeypatch):
    """Two steps before the crash and two after it, by tokens: 5 a step, of which 20 are the rule."""
    plan = travelling(tmp_path, monkeypatch, until={"sampled_tokens": 20}, cluster__retries=1)
    monkeypatch.setenv("FAKE", json.dumps({"opd": "crash@3"}))
    assert build(plan, FakeStages()) == []
    manifest = read_manifest(directory(plan, NAME))
    assert manifest["attempts"] == 2 and manifest["until"]["reason"] == "20 sampled tokens >= 20 at step 4"
    assert manifest["ledger"]["sampled_tokens"] == 20, "no step counts twice"


def test_a_plateau_of_validation_ends_stage_3(tmp_path, monkeypatch):
    write_problems(tmp_path / "validation.parquet", range(4), prefix="validation")
    scores = {"2": 0.2, "4": 0.4, "6": 0.4, "8": 0.4}
    logged = {step: {"val-core/held/acc/mean@4": score} for step, score in scores.items()}
    monkeypatch.setenv("FAKE_METRICS", json.dumps({"grpo": logged}))
    plan = project(
        tmp_path,
        rows=["direct-grpo"],
        data__validation="validation.parquet",
        stages__student_rl__steps=20,
        stages__student_rl__validate_every=2,
        stages__student_rl__until={"plateau": "validation"},
    )
    assert build(plan, SimulatedStages()) == []
    manifest = read_manifest(directory(plan, "student-rl-all"))
    assert manifest["until"]["step"] == 8 and manifest["until"]["reason"].startswith("validation rises by 0 a step")


def test_a_matched_row_ends_by_its_budget_alone(tmp_path, monkeypatch):
    """The budget counts the other row's maximum of steps: it is known before that row has run."""
    matched = {"m": {"row": "opd-only", "to": "full-bridge", "by": "updates"}}
    plan = travelling(tmp_path, monkeypatch, row="m", matched=matched)
    node = next(node for node in plan.order if node.name == f"{NAME}-m")
    assert "until" not in node.settings and node.settings["steps"] == 4 + 8


def test_a_row_with_its_own_number_of_steps_has_no_rules(tmp_path):
    rules = {"stages__student_rl__until": {"sampled_tokens": 20}}
    joint, sequential = (project(tmp_path, rows=[row], **rules) for row in ("joint-kdrl", "half-split"))
    assert "until" in node_of(sequential, "student-rl-2h").settings
    trained = [node for node in joint.order if node.name.startswith("student-rl")]
    assert trained and not [node for node in trained if "until" in node.settings]
