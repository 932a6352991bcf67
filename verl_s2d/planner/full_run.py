"""Plan the full runs that a pilot predicts: their checks, their costs, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_s2d.checks import check_plan
from verl_s2d.checks.finding import Finding
from verl_s2d.checks.sized_plan import sized
from verl_s2d.errors import UserError
from verl_s2d.planner.pilot_plan import PilotPlan, pilot_plan
from verl_s2d.planner.pilot_stages import right_of
from verl_s2d.recipe.planner_settings import STUDENT
from verl_s2d.recipe.schema import Recipe
from verl_s2d.report.inputs import found_rows
from verl_s2d.report.views import plan_view
from verl_s2d.stages.evaluate.statistics import mean_and_stderr
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

COSTS = ("sampled_tokens", "verifier_calls", "gpu_hours")


def check_pilot(recipe: Recipe, *, run_dir: Path | None = None, seeds: Sequence[int] | None = None) -> Finding:
    """Check what `pilot` would refuse, as far as it needs no script and no verl."""
    try:
        pilot = pilot_plan(recipe, run_dir=run_dir, seeds=seeds and seeds[:1])
        pilot.round(0, [STUDENT, *pilot.teachers], [])
        rows = [candidate.name for candidate in pilot.candidates(pilot.teachers)]
        make_plan(pilot.recipe, run_dir=run_dir, rows=rows, seeds=[pilot.seed])
    except UserError as error:
        return Finding.refusal("pilot", error)
    return Finding("pilot", True, f"{', '.join(map(str, pilot.labels))} of {pilot.total} labels; {', '.join(rows)}")


def full_plan(pilot: PilotPlan) -> Plan:
    """Plan the candidates' rows in the pilot's run directory.

    Raises:
        UserError: a row cannot be planned, or its inputs are refused.
    """
    rows = [candidate.name for candidate in pilot.candidates(pilot.teachers)]
    plan = make_plan(pilot.recipe, run_dir=pilot.context.run_dir, rows=rows, seeds=[pilot.seed])
    check_plan(plan)
    return plan


def full_costs(plan: Plan) -> dict[str, dict[str, Any]]:
    """Check the full runs and bound the cost of each row (verl_s2d.sizing), by its name; None for what is not known.

    Raises:
        UserError: an input is refused, or verl would not start a stage.
    """
    check_plan(plan)
    stages = [stage for stage in sized(plan, plan_view(plan))["stages"] if "cost" in stage]
    found = {}
    for row in plan.rows:
        costs = [stage["cost"] for stage in stages if row.name in stage["rows"]]
        figures = {key: [cost[key] for cost in costs] for key in COSTS}
        found[row.name] = {key: None if None in values else sum(values) for key, values in figures.items()}
    return found


def enter_outcomes(result: Mapping[str, Any], pilot: PilotPlan, plan: Plan, build: Callable[[Plan], bool]) -> dict:
    """Add to a pilot's candidates what became of those whose row has been run since.

    With data.validation the row's model is scored on the problems that were predicted for. Otherwise the full run has
    trained on them, and its evaluation counts.

    Args:
        build: builds a plan's missing stages; False if one failed.
    """
    candidates = []
    for entry in result["candidates"]:
        (row,) = (row for row in plan.rows if row.name == entry["name"])
        model = row.target.inputs.get("model")
        if not is_built(row.target, plan.context.directory(row.target)) or model is None:
            candidates.append(entry)
            continue
        if pilot.recipe.data.validation is None:
            candidates.append(entry | {"outcome": evaluated(plan.context.run_dir, row.name, row.seed)})
            continue
        node = pilot.outcome(model, row.name)
        if build(pilot.plan([node])):
            mean, stderr = mean_and_stderr(right_of([node], plan.context)[0])
            entry = entry | {"outcome": {"accuracy": mean, "stderr": stderr, "measured_on": "data.validation"}}
        candidates.append(entry)
    return {**result, "candidates": candidates}


def evaluated(run_dir: Path, row: str, seed: int) -> dict[str, Any] | None:
    """Read a finished row's accuracy over the problems of all its evaluation sets; None if it is not finished."""
    found = found_rows(run_dir, [row], [seed])
    if not found:
        return None
    problems = [p for members in found[0].result["per_problem"].values() for p in members]
    mean, stderr = mean_and_stderr(np.array([p["correct"] / p["samples"] for p in problems]))
    return {"accuracy": mean, "stderr": stderr, "measured_on": "evaluation"}
