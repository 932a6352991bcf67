"""Measure planning of large graphs: every row of a recipe, with enough seeds for the given number of stages.

    python -m benchmarks.planning nodes=1000,10000 rounds=3

Timed: rows and digests (`make_plan`), the order of the stages, what is built and what is missing, and all that
`verl-s2d plan --overrides` prints. Reading the recipe and hashing its models and data is not timed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.workflow.project import write_project
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.schema import Recipe
from verl_s2d.report.command_text import plan_text
from verl_s2d.report.views import plan_view
from verl_s2d.stages.planning import make_plan


def main(nodes: str = "1000,10000", rounds: int = 3) -> None:
    """Measure and print the table for RESULTS.md."""
    print("| stages | rows | plan (s) | print it with every command (s) | together (s) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="s2d-planning-") as scratch:
        recipe = load_recipe(write_project(Path(scratch)))
        of_a_seed = len(make_plan(recipe, rows=["all"], seeds=[0]).order)
        for count in map(int, nodes.split(",")):
            results = [_measure(recipe, Path(scratch) / "run", -(-count // of_a_seed)) for _ in range(rounds)]
            stages, rows = results[0][:2]
            plan, text = (statistics.median(result[i] for result in results) for i in (2, 3))
            print(f"| {stages:,} | {rows:,} | {plan:.2f} | {text:.2f} | {plan + text:.2f} |", flush=True)
    print(f"medians of {rounds} rounds, load {os.getloadavg()[1]:.1f}")


def _measure(recipe: Recipe, run_dir: Path, seeds: int) -> tuple[int, int, float, float]:
    """(stages, rows, seconds to plan, seconds to make the text)."""
    began = time.perf_counter()
    plan = make_plan(recipe, run_dir=run_dir, rows=["all"], seeds=list(range(seeds)))
    assert len(plan.missing()) == len(plan.order)
    planned = time.perf_counter()
    plan_text(plan_view(plan), overrides=True)
    return len(plan.order), len(plan.rows), planned - began, time.perf_counter() - planned


if __name__ == "__main__":
    import sys

    main(**{key: int(value) if key == "rounds" else value for key, value in (a.split("=") for a in sys.argv[1:])})
