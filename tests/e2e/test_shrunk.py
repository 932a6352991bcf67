"""The full recipes with `--shrink`, on real verl, vLLM and Ray.

Rows that have every section of `stages:`; all rows are in test_rows.py. Recipes that differ in sizes alone are equal at
tiny size, so one of them runs. `-k 24gb` chooses one by its name, tests/RESULTS.md has the times.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from verl_s2d.recipe.load import load_recipe
from verl_s2d.workflow.identity import file_digest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAPER = sorted(path for name in ("llama", "qwen3") for path in ROOT.glob(f"recipes/{name}/*.yaml"))


def content(recipe: Path) -> str:
    """The recipe at tiny size, without its name and rows."""
    return load_recipe(recipe, shrink="cpu").model_dump_json(exclude={"name", "rows"})


RECIPES = list({content(recipe): recipe for recipe in PAPER}.values())


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_at_tiny_size(recipe, tmp_path):
    rows = ["direct-grpo", "raw-teacher" if "24gb" in recipe.stem else "full-bridge"]
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--shrink", "--run-dir", str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run([*command, "--rows", ",".join(rows)], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = [(path.parent, json.loads(path.read_text())) for path in tmp_path.glob("stages/*/manifest.json")]
    print(f"{recipe.stem}: {len(rows)} rows, {len(stages)} stages, {time.monotonic() - began:.0f} s")

    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["name"] for row in report["rows"]} == set(rows)
    assert set(report["sets"]) == {"math500", "aime24", "aime25"}
    names = [stage["name"] for _, stage in stages]
    assert len(names) == len(set(names)), "a stage that rows share was built twice"
    check_ledgers(stages)
    weights = {directory.name: model_digest(directory) for directory, _ in stages if model_digest(directory)}
    assert len(set(weights.values())) == len(weights), "a stage left the model that another one left"


def check_ledgers(stages: list[tuple[Path, dict]]) -> None:
    """Labels are read where the verifier is, and nowhere else; every stage did what it was to do."""
    for _, stage in stages:
        ledger, kind = stage["ledger"], stage["kind"]
        assert bool(ledger["labels_read"]) == bool(ledger["verifier_calls"]) == (kind == "grpo"), stage["name"]
        assert (ledger["updates"] > 0) == (kind in ("grpo", "warmup", "opd")), stage["name"]
        assert (ledger["teacher_scored_tokens"] > 0) == (kind in ("warmup", "opd")), stage["name"]
        assert (ledger["sampled_tokens"] > 0) == (kind in ("grpo", "rollouts", "opd")), stage["name"]


def model_digest(stage: Path) -> str | None:
    """Digest the weights that a stage handed on; None for one without a model."""
    files = [*stage.glob("*.safetensors"), *stage.glob("model/*.safetensors")]
    return file_digest(files[0]) if files else None
