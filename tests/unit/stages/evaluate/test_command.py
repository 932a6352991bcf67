"""`verl-s2d evaluate`: any model or finished stage, by one command, without training anything."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.workflow.project import FakeStages, write_model, write_project
from verl_s2d import cli
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.inputs import finished_rows
from verl_s2d.stages.evaluate.command import evaluation_plan
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan


@pytest.fixture(autouse=True)
def launcher(monkeypatch):
    launcher = FakeStages()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)
    monkeypatch.setattr("verl_s2d.workflow.lane.choose_launcher", lambda plan, environment, log: launcher)
    return launcher


@pytest.fixture
def built(tmp_path, launcher):
    """A finished half-split, seed 0."""
    recipe = load_recipe(write_project(tmp_path))
    plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"])
    assert run_plan(plan, PlainProgress(), check=lambda final: None) == []
    launcher.started.clear()
    return plan


def evaluate(tmp_path, capsys, *models, rows="half-split", more=()):
    arguments = ["evaluate", tmp_path / "recipe.yaml", *models, "--run-dir", tmp_path / "run", "--rows", rows, *more]
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def stage(plan, name):
    return next(plan.context.directory(node) for node in plan.order if node.name == name)


def test_a_model_directory_and_stages_are_compared_by_one_command(built, tmp_path, capsys, launcher):
    write_model(tmp_path / "other", weight=b"o")
    code, out, err = evaluate(tmp_path, capsys, "opd-1h", tmp_path / "other", more=["--json"])
    assert code == 0, err
    report = json.loads(out)
    assert [row["name"] for row in report["rows"]] == ["opd-1h", str(tmp_path / "other")]
    assert [argv[0] for argv in launcher.started] == ["verl_s2d.stages.evaluate.sample_and_score"] * 2
    models = [next(a for a in argv if a.startswith("model=")) for argv in launcher.started]
    assert models == [f"model={stage(built, 'opd-1h') / 'model'}", f"model={tmp_path / 'other'}"]
    assert report["rows"][0]["ledger"]["labels_read"] == 4 and report["rows"][1]["ledger"]["labels_read"] == 0
    (difference,) = report["differences"]
    assert difference["interval_over"] == "problems" and difference["interval"] == [0.0, 0.0]
    assert not (tmp_path / "run" / "report.json").exists(), "the report is of the rows"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["rows"] == ["half-split"]


def test_what_a_row_has_evaluated_is_not_evaluated_again(built, tmp_path, capsys, launcher):
    for model in ("student-rl-2h", stage(built, "student-rl-2h").name, stage(built, "student-rl-2h")):
        code, out, _ = evaluate(tmp_path, capsys, model)
        assert code == 0 and "50.0 +- 10.0" in out and "generations.parquet" in out
    assert launcher.started == []


def test_every_seed(built, tmp_path, capsys, launcher):
    code, out, _ = evaluate(tmp_path, capsys, tmp_path / "student", more=["--seeds", "0,1,2", "--json"])
    assert code == 0 and json.loads(out)["rows"][0]["seeds"] == [0, 1, 2] and len(launcher.started) == 3


def test_a_stage_of_another_recipe_by_its_directory(built, tmp_path, capsys, launcher):
    moved = tmp_path / "elsewhere"
    shutil.copytree(stage(built, "opd-1h"), moved)
    code, _, err = evaluate(tmp_path, capsys, moved)
    assert code == 0, err
    assert f"model={moved / 'model'}" in launcher.started[0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("opd-2h", ["No stage of these rows", "Did you mean opd-1h?"]),
        ("teacher-rl-all", ["not finished", "verl-s2d run"]),
        ("rollouts-1h", ["makes no model", "opd-1h"]),
        ("./nowhere", ["no such model directory"]),
        (".", ["no config.json"]),
    ],
)
def test_what_cannot_be_evaluated(built, tmp_path, capsys, launcher, model, words):
    code, out, err = evaluate(tmp_path, capsys, model, rows="half-split,full-bridge")
    assert code == 2 and out == "" and launcher.started == []
    assert all(word in err for word in words), err


def test_a_stage_whose_own_inputs_are_gone_is_not_trained_again(built, tmp_path, launcher):
    shutil.rmtree(stage(built, "warmup-1h"))
    with pytest.raises(UserError, match=r"(?s)warmup-1h, from which opd-1h was made.*opd-[0-9a-f]+/model"):
        evaluation_plan(built, ["opd-1h"])
    assert len(evaluation_plan(built, [str(stage(built, "opd-1h") / "model")]).order) == 1


def test_chosen_k_are_those_of_the_report_and_rebuild_nothing(built, tmp_path, launcher):
    recipe = load_recipe(write_project(tmp_path, evaluation__pass_at=[2]))
    plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"])
    assert plan.missing() == []
    (row,) = finished_rows(plan)
    # Of two samples 0, 1, 2, 0 and 1 are right, so that three of five problems are solved.
    assert row.result["sets"]["held"]["pass_at"] == {"2": pytest.approx(3 / 5)}


def test_gc_keeps_what_was_evaluated_by_hand(built, tmp_path, capsys, launcher):
    def gc(*arguments):
        assert cli.main(["gc", *map(str, arguments), "--delete"]) == 0
        return capsys.readouterr().out

    write_model(tmp_path / "other", weight=b"o")
    of_rows = set((tmp_path / "run" / "stages").glob("evaluate-*"))
    for model in ("opd-1h", tmp_path / "other"):
        assert evaluate(tmp_path, capsys, model)[0] == 0
    first, second = set((tmp_path / "run" / "stages").glob("evaluate-*")) - of_rows
    shutil.rmtree(tmp_path / "other")
    assert "nothing to remove" in gc(tmp_path / "run")
    (first / "manifest.json").unlink()
    gc(tmp_path / "run")
    assert not first.exists() and (second / "manifest.json").exists(), "a part of a result is none"
    gc(tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run", "--rows", "half-split")
    assert not second.exists() and built.missing() == [], "exactly these rows"
