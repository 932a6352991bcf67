"""The self-test of `check`: its plan, what it reads, what it says. The engines run in tests/e2e."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import SimulatedStages
from tests.support.workflow.runs import Lines, project
from verl_s2d import cli
from verl_s2d.checks.self_test import self_test
from verl_s2d.errors import UserError
from verl_s2d.workflow.store.run_directory import read_record

AGREE = {
    "s2d/reverse_kl": 2e-7,
    "s2d/advantage_p99.9": 4e-6,
    "critic/advantages/max": 3e-6,
    "critic/advantages/min": -4e-6,
    "rollout_corr/kl": 2e-4,
    "training/rollout_probs_diff_mean": 1e-3,
    "training/rollout_probs_diff_max": 0.02,
}


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


def findings(tmp_path, monkeypatch, logged, launcher=None, **changes):
    monkeypatch.setenv("FAKE_METRICS", json.dumps({"opd": {"1": logged}}))
    plan = project(tmp_path, **changes)
    return self_test(plan, Lines(), launcher or SimulatedStages())


def test_engines_that_agree(tmp_path, monkeypatch):
    launcher = SimulatedStages()
    same, drift = findings(tmp_path, monkeypatch, AGREE, launcher)
    assert same.ok and "reverse KL 2e-07 nats per token, |A| up to 4e-06 on 99.9 % of tokens, limit" in same.detail
    assert "limit 0.0001 (largest |A| 4e-06)" in same.detail
    assert drift.ok and "mean KL 0.0002 nats per token" in drift.detail and "warning" not in drift.detail
    assert [name.partition("-")[0] for name in launcher.started] == ["slices", "opd"]
    assert "rows" not in read_record(tmp_path / "run"), "gc may remove it"
    again = SimulatedStages()
    assert findings(tmp_path, monkeypatch, AGREE, again) == [same, drift] and again.started == []


@pytest.mark.parametrize("wrong", [{"s2d/reverse_kl": 0.02}, {"s2d/advantage_p99.9": 0.3}])
def test_a_teacher_that_differs_from_itself_fails(tmp_path, monkeypatch, wrong):
    same, _ = findings(tmp_path, monkeypatch, AGREE | wrong)
    assert not same.ok and "disagree about one model" in same.detail


def test_one_unlikely_token_is_shown_and_no_failure(tmp_path, monkeypatch):
    same, _ = findings(tmp_path, monkeypatch, AGREE | {"critic/advantages/min": -0.3})
    assert same.ok and "(largest |A| 0.3)" in same.detail


def test_drift_between_the_engines_is_a_warning(tmp_path, monkeypatch):
    _, drift = findings(tmp_path, monkeypatch, AGREE | {"rollout_corr/kl": 0.05})
    assert drift.ok and "warning: rollout_corr/kl is above 0.01" in drift.detail


def test_a_step_that_fails_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"opd": "crash@1"}))
    (finding,) = findings(tmp_path, monkeypatch, AGREE)
    assert not finding.ok and "out of luck" in finding.detail


def test_it_needs_stage_2b_and_a_recipe(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"stages\.opd"):
        findings(tmp_path, monkeypatch, AGREE, rows=["direct-grpo"], stages__opd=None)
    monkeypatch.setattr("verl_s2d.checks.installation.check_everything", lambda plan: [])
    assert cli.main(["check", "--self-test"]) == 2
    assert "Give a recipe" in capsys.readouterr().err
