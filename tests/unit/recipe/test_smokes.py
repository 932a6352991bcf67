"""A smoke is its full recipe in every respect but sizes, models and what a CPU does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.graph import ancestors

RECIPES = ROOT / "recipes"
SMOKES = sorted((RECIPES / "smoke").glob("*.yaml"))
SIZES = (
    "data.train_batch_size",
    "ppo_mini_batch_size",
    "rollout.tensor_model_parallel_size",
    "rollout.gpu_memory_utilization",
    "num_workers",
    "num_data_storage_units",
    # A tiny model in few steps: the published rate would leave it as it was.
    "optim.lr",
)


def full(smoke: Path) -> Path:
    (found,) = (p for p in RECIPES.glob(f"*/{smoke.name}") if p.parent != smoke.parent)
    return found


def test_every_recipe_of_the_paper_has_a_smoke():
    recipes = {p.name for p in RECIPES.glob("*/*.yaml") if p.parent.name not in ("smoke", "quickstart")}
    assert recipes == {p.name for p in SMOKES}


@pytest.mark.parametrize("smoke", SMOKES, ids=lambda path: path.stem)
def test_a_smoke_differs_from_its_recipe_by_sizes_models_and_machine(smoke):
    small, large = load_recipe(smoke), load_recipe(full(smoke))
    assert (small.rows, small.seeds, small.verifier) == (large.rows, large.seeds, large.verifier)
    assert small.data.source.args == large.data.source.args
    assert small.data.chat_template == large.data.chat_template
    assert small.evaluation.model_copy(update={"samples": 16}) == large.evaluation
    for stage, _ in small.stages:
        ours, theirs = (getattr(recipe.stages, stage).model_dump() for recipe in (small, large))
        verl = [settings.pop("verl", {}) for settings in (ours, theirs)]
        assert (ours.pop("response_tokens", None) is None) == (theirs.pop("response_tokens", None) is None)
        for size in ("steps", "save_every", "tensor_parallel_size"):
            ours.pop(size, None), theirs.pop(size, None)
        assert ours == theirs, stage
        megatron = "model_engine" in verl[1] or "engine" in verl[1]
        kept = {k: v for k, v in verl[1].items() if not (megatron and is_megatrons(k))}
        assert verl[0].keys() == kept.keys(), stage
        assert {k: v for k, v in verl[0].items() if v != kept[k] and not k.endswith(SIZES)} == {}, stage


def is_megatrons(key: str) -> bool:
    return ".megatron." in key or key in ("model_engine", "engine", "optim") or key.startswith("engine.")


@pytest.mark.parametrize("smoke", SMOKES, ids=lambda path: path.stem)
def test_a_smoke_has_the_graph_of_its_recipe(smoke, tmp_path):
    def graph(path: Path) -> dict[str, set[str]]:
        """Row -> stages; models and what makes them are left out, because a hub makes the large ones."""
        plan = make_plan(load_recipe(path), run_dir=tmp_path)
        return {row.name: {n.name for n in ancestors(row.target) if n.kind != "script"} for row in plan.rows}

    assert graph(smoke) == graph(full(smoke))
