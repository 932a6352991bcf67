"""What of a run is to be kept when it is cleaned up: which rows, and which results besides."""

from __future__ import annotations

from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.workflow.planning import Plan, make_plan
from verl_s2d.workflow.store.run_directory import evaluations, read_record


def plan_to_keep(run: Path, run_dir: Path | None, rows: list[str] | None, seeds: list[int] | None) -> Plan:
    """The plan of everything worth keeping: the rows and seeds of the recipe as it is now, and all that `run` was ever
    asked for in this directory; or exactly those that are given.

    Args:
        run: a recipe, or the directory of a run, which knows its recipe.

    Raises:
        UserError: the directory does not say which recipe it belongs to, or the recipe cannot be planned.
    """
    if run.is_dir():
        run_dir, run = run, Path((read_record(run) or {}).get("file", ""))
        if not run.is_file():
            raise UserError(
                "The directory does not name a recipe that is still there.",
                key="run",
                value=str(run_dir),
                remedy="Give the recipe: `verl-s2d gc recipe.yaml --run-dir <directory>`.",
            )
    recipe = load_recipe(run)
    asked = read_record(run_dir or Path("runs") / recipe.name) or {}
    known = [name for name in asked.get("rows", ()) if name in recipe.row_names]
    return make_plan(
        recipe,
        run_dir=run_dir,
        rows=rows or list(dict.fromkeys([*recipe.rows, *known])),
        seeds=seeds or sorted({*recipe.seeds, *asked.get("seeds", ())}),
    )


def results_to_keep(plan: Plan, rows: list[str] | None) -> list[str]:
    """Labels of the evaluations that `evaluate` was asked for; none where the rows to keep are given."""
    return [] if rows else evaluations(plan.context.run_dir)
