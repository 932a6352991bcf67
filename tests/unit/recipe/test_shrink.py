"""`--shrink` changes sizes, models, data and what a CPU does not have, and nothing else of a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.shrink.small_models import FAMILIES
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.graph import ancestors

RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
PAPER = [path for path in RECIPES if path.parent.name != "quickstart"]
SCRIPTS = ROOT / "verl_s2d" / "recipe" / "shrink"
SIZES = (
    *("train_batch_size", "mini_batch_size", "parallel_size", "num_workers", "num_data_storage_units"),
    *("optim.lr", "rollout.n"),
)


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_only_sizes_models_data_and_machine_differ(path):
    small, large = load_recipe(path, shrink="cpu"), load_recipe(path)
    assert small.name == f"{large.name}-shrunk" and small.path == large.path
    assert (small.rows, small.verifier, small.matched) == (large.rows, large.verifier, large.matched)
    assert small.alarms == large.alarms and small.data.chat_template == large.data.chat_template
    assert small.evaluation.samples <= 4 and (small.cluster.nodes, small.cluster.gpus_per_node) == (1, 1)
    for stage, _ in small.stages:
        ours, theirs = getattr(small.stages, stage), getattr(large.stages, stage)
        assert (ours is None) == (theirs is None)
        ours, theirs = (section.model_dump() if section else {} for section in (ours, theirs))
        verl = [settings.pop("verl", {}) for settings in (ours, theirs)]
        assert ours.pop("steps", 0) <= 2 and ours.pop("save_every", 1) == 1
        assert (ours.pop("response_tokens", None) is None) == (theirs.pop("response_tokens", None) is None)
        different = {key for key in ours if ours[key] != theirs[key]}
        assert different <= {"tensor_parallel_size", "engine", "validate_every", "per_prompt"}
        check_verl(*verl)


def check_verl(ours: dict, theirs: dict) -> None:
    megatron = "megatron" in (theirs.get("model_engine"), theirs.get("engine"))
    gone = theirs.keys() - ours.keys()
    assert not {k for k in gone if not (k.endswith("gpu_memory_utilization") or (megatron and is_megatrons(k)))}
    assert not {k for k in ours if ours[k] != theirs[k] and not k.endswith(SIZES)}
    assert not megatron or not any(map(is_megatrons, ours))


def is_megatrons(key: str) -> bool:
    return ".megatron." in key or key in ("model_engine", "engine", "optim") or key.startswith("engine.")


def test_megatron_stays_beside_a_gpu():
    keys = load_recipe(ROOT / "recipes/llama/llama3.1-8b-from-70b.yaml", shrink="cuda").stages.teacher_rl.verl
    assert keys["model_engine"] == "megatron"
    assert {v for k, v in keys.items() if k.endswith("parallel_size")} == {1}


@pytest.mark.parametrize("path", PAPER, ids=names(PAPER))
def test_the_graph_is_that_of_the_recipe(path, tmp_path):
    def graph(shrink: str | None) -> dict[str, set[str]]:
        """Row -> stages, without the scripts that make models."""
        plan = make_plan(load_recipe(path, shrink=shrink), run_dir=tmp_path)
        return {row.name: {n.name for n in ancestors(row.target) if n.kind != "script"} for row in plan.rows}

    assert graph("cpu") == graph(None)


def test_models_are_of_the_same_architecture_and_shared_alike():
    llama = load_recipe(ROOT / "recipes/llama/llama3.1-8b-from-70b.yaml", shrink="cpu")
    assert {model.args["family"] for model in llama.models.values()} == {"llama"}
    assert llama.models["student"].args != llama.models["teacher"].args


def test_a_recipe_of_ones_own_shrinks_with_its_files(tmp_path):
    recipe = write_project(tmp_path, sft_teacher="student")
    with pytest.raises(UserError) as refused:
        load_recipe(recipe, shrink="cpu")
    assert refused.value.key == "student" and "qwen3" in refused.value.remedy

    for role in ("student", "teacher", "sft"):
        (tmp_path / role / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    small = load_recipe(recipe, shrink="cpu")
    assert small.models["student"] == small.models["sft_teacher"] != small.models["teacher"]
    assert set(small.data.source.args) == {"train", *(f"eval.{name}" for name in load_recipe(recipe).data.eval)}
    out = run_script(small.data.source, tmp_path / "out")
    assert pq.read_table(out / "train.parquet").num_rows == 20 and pq.read_table(out / "held.parquet").num_rows == 4


def test_rules_that_two_steps_cannot_reach_are_left_out():
    rules = ["stages.opd.steps=100", "stages.opd.until={travel: 0.3, plateau: divergence, sampled_tokens: 100}"]
    small = load_recipe(ROOT / "recipes/quickstart/quickstart.yaml", rules, shrink="cpu")
    assert small.stages.opd.until.written() == {"travel": 0.3}


def test_models_that_a_script_makes_stay(tmp_path):
    path = ROOT / "recipes/quickstart/quickstart.yaml"
    small, large = load_recipe(path, shrink="cpu"), load_recipe(path)
    assert small.models == large.models


def test_a_recipe_is_checked_before_it_shrinks(tmp_path):
    recipe = write_project(tmp_path)
    settings = yaml.safe_load(recipe.read_text())
    settings["cluster"] = {"gpu_memory_gb": "much"}
    recipe.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError) as refused:
        load_recipe(recipe, shrink="cpu")
    assert refused.value.key == "cluster.gpu_memory_gb"


def test_published_sets_become_tiny_ones_that_the_recipe_script_prepares(tmp_path):
    out = run_script(load_recipe(PAPER[0], shrink="cpu").data.source, tmp_path / "out")
    rows = {path.stem: pq.read_table(path).num_rows for path in out.glob("*.parquet")}
    assert rows == {"train": 24, "math500": 4, "aime24": 4, "aime25": 4}
    labelled = json.loads((out / "prepared.json").read_text())["sets"]["dapo-math-17k"]
    assert labelled["duplicates"]["identical"] == 25 and labelled["problems"] == 24, "copies and overlaps are gone"


def run_script(source, out: Path) -> Path:
    arguments = [
        f"{key}={str(value).lower() if value in (True, False) else value}" for key, value in source.args.items()
    ]
    subprocess.run([sys.executable, source.script, "--out", str(out), *arguments], check=True, timeout=300)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_reads_chats_and_answers_in_a_box(family, tmp_path):
    command = [sys.executable, str(SCRIPTS / "tiny_chat_model.py"), "--out", str(tmp_path), f"family={family}"]
    subprocess.run([*command, "layers=1", "hidden=32", "steps=1"], check=True, timeout=300)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == family and (tmp_path / "chat_template.jinja").exists()
