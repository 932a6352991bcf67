"""Every recipe here is one that verl would start: planned, checked and composed without weights, data or a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import published
from tests.support.paths import ROOT
from verl_s2d.checks import packages
from verl_s2d.checks.inputs.batch_sizes import check_batches, check_engines
from verl_s2d.checks.inputs.verl_keys import check_verl_keys
from verl_s2d.checks.packages import check_packages
from verl_s2d.checks.software import check_verifier
from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_verl_accepts_every_stage_of_every_row(path, tmp_path, monkeypatch):
    plan = make_plan(load_recipe(path), run_dir=tmp_path, rows=["all"])
    check_verifier(plan)
    check_verl_keys(plan.order)
    check_batches(plan, plan.order)
    check_engines(plan, plan.order)
    # What a stage starts from is a path to verl, so of equal settings one is asked for.
    trained = [node for node in plan.order if node.stage.trains]
    distinct = {(node.kind, json.dumps([node.settings, node.operations], default=str)): node for node in trained}
    assert {node.kind for node in trained} == {"grpo", "opd", "warmup"}
    device = plan.context.device
    with VerlProbe(device, stage_environment(device), plan, distinct.values()) as probe:
        settings = probe.stages()
    assert len(settings) == len(distinct)
    # Nothing that a GPU needs is installed: every stage of a GPU's recipe is refused, none of a CPU's.
    monkeypatch.setattr(packages, "missing", lambda *modules: list(modules))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for label in settings:
        if plan.context.device == "cpu":
            assert check_packages({label: settings[label]}, "cpu") == []
            continue
        with pytest.raises(UserError, match=r"flash_attn|transformer_engine, megatron\.bridge"):
            check_packages({label: settings[label]}, "cuda")


def test_the_data_of_the_qwen3_recipes(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "qwen3" / "qwen3-1.7b-from-8b.yaml")
    args = [f"{k}={json.dumps(v) if isinstance(v, bool) else v}" for k, v in recipe.data.source.args.items()]
    sources = [f"sources.{name}={file}" for name, file in published.write_sets(tmp_path / "published").items()]
    script = recipe.directory / recipe.data.source.script
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path / "out"), *args, *sources], check=True)
    assert {p.stem for p in (tmp_path / "out").glob("*.parquet")} == {"train", "math500", "aime24", "aime25"}
    manifest = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert manifest["sets"]["dapo-math-17k"]["problems"] == 38 - 6
    assert manifest["chat_template"] == recipe.data.chat_template
    wrong = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path), "template=plain"], capture_output=True, text=True
    )
    assert wrong.returncode != 0 and "template" in wrong.stderr and "Traceback" not in wrong.stderr
