"""`verl-s2d init`: a recipe that loads, whose batches fit the data and whose stages fit the machine."""

from __future__ import annotations

import json

import pytest

from tests.support.published_rows import gsm8k
from tests.support.tiny import write_model
from verl_s2d.checks.inputs.batch_sizes import check_batches
from verl_s2d.checks.inputs.data_slices import check_data
from verl_s2d.checks.sized_plan import sized
from verl_s2d.cli import main
from verl_s2d.data.problems import read_problems
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.views import plan_view
from verl_s2d.stages.planning import make_plan
from verl_s2d.starter import measure

QWEN = ["--student", "Qwen/Qwen3-1.7B", "--teacher", "Qwen/Qwen3-8B"]


def write(path, count):
    path.write_text("".join(json.dumps(gsm8k(i)) + "\n" for i in range(count)))
    return path


@pytest.fixture
def offline(monkeypatch):
    """No hub: shapes of published models are known, their tokenizers are not."""

    def refuse(name, revision, key):
        raise UserError("The hub is unreachable.", key=key, value=name, remedy="None.")

    monkeypatch.setattr(measure, "hub_files", refuse)


def plan_of(directory, run_dir):
    return make_plan(load_recipe(directory / "recipe.yaml"), run_dir=run_dir)


@pytest.mark.parametrize("count", [6, 40, 1000])
@pytest.mark.parametrize("gpus", [0, 1, 6, 8])
def test_batches_fit_the_data(tmp_path, monkeypatch, offline, capsys, gpus, count):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "train.jsonl", count)
    assert main(["init", "mine", *QWEN, "--data", str(data), "--gpus", str(gpus)]) == 0
    told = capsys.readouterr().out
    assert all(f"verl-s2d {command} mine/recipe.yaml" in told for command in ("check", "plan", "run"))
    plan = plan_of(tmp_path / "mine", tmp_path / "run")
    check_batches(plan, plan.order)
    recipe = plan.recipe
    assert recipe.chosen_rows[-1] == ("raw-teacher" if gpus == 1 else "half-split")
    assert recipe.cluster.device == ("cuda" if gpus else "cpu") and recipe.cluster.gpus_per_node == max(1, gpus)
    assert recipe.stages.opd.steps == 2 or gpus, "a trial on a CPU"
    held = read_problems(tmp_path / "mine/data/held_out.parquet")
    assert len(held) == min(200, count // 5)


def test_sizes_are_of_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher"):
        write_model(tmp_path / name)
    data, held = write(tmp_path / "train.jsonl", 20), write(tmp_path / "test.jsonl", 22)
    command = ["init", "mine", "--student", "student", "--teacher", "teacher", "--data", str(data), "--gpus", "0"]
    assert main([*command, "--eval", str(held)]) == 2, "every problem is evaluated on"
    assert not (tmp_path / "mine").exists()
    write(tmp_path / "test.jsonl", 5)
    (tmp_path / "own.py").write_text("def score(*args, **kwargs):\n    return 1.0\n")
    code = main([*command, "--eval", str(held), "--verifier", "own.py:score", "--steps", "3"])
    recipe = load_recipe(tmp_path / "mine/recipe.yaml")
    assert code == 0 and recipe.verifier == f"{tmp_path}/own.py:score" and recipe.stages.warmup.steps == 3
    assert recipe.models["student"].model == str(tmp_path / "student")
    assert recipe.data.prompt_tokens == 64 and recipe.data.response_tokens + 64 <= 256
    assert len(read_problems(tmp_path / "mine/data/train.parquet")) == 15


def test_prompts_without_labels(tmp_path, monkeypatch, offline, capsys):
    monkeypatch.chdir(tmp_path)
    data, more = write(tmp_path / "train.jsonl", 40), write(tmp_path / "more.jsonl", 60)
    command = ["init", "mine", *QWEN, "--data", str(data), "--prompts", str(more)]
    assert main([*command, "--gpus", "1"]) == 2, "no teacher is trained on one GPU"
    assert "--prompts" in capsys.readouterr().err and not (tmp_path / "mine").exists()
    assert main([*command, "--gpus", "0"]) == 0
    assert "prompts.parquet: 20 problems (60 rows; left out: 8 evaluated, 32 labelled)" in capsys.readouterr().out
    plan = plan_of(tmp_path / "mine", tmp_path / "run")
    assert plan.recipe.chosen_rows[-1] == "bridge-more-prompts"
    check_batches(plan, plan.order)
    check_data(plan)


def test_a_directory_with_files_is_left_alone(tmp_path, offline, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("mine")
    data = write(tmp_path / "train.jsonl", 20)
    assert main(["init", str(tmp_path / "mine"), *QWEN, "--data", str(data)]) == 2
    assert "not empty" in capsys.readouterr().err and (tmp_path / "mine" / "recipe.yaml").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 8])
def test_every_stage_fits_the_memory(tmp_path, monkeypatch, offline, gpus):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "train.jsonl", 2000)
    assert main(["init", "mine", *QWEN, "--data", str(data), "--gpus", str(gpus)]) == 0
    plan = plan_of(tmp_path / "mine", tmp_path / "run")
    assert sized(plan, plan_view(plan))["sizes"]["fits"]
