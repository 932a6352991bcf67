"""Run a pilot round by round, predict every candidate, and write pilot.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verl_s2d.data.files import write_json
from verl_s2d.planner.guards import gap_to_student, overlap_warnings
from verl_s2d.planner.halving import losers
from verl_s2d.planner.law import Points
from verl_s2d.planner.pilot_budget import PilotBudget, gpu_hours
from verl_s2d.planner.pilot_plan import PilotPlan, Round
from verl_s2d.planner.pilot_stages import model_steps, right_of, travel_of
from verl_s2d.planner.prediction import (
    LEVEL,
    Candidate,
    Pilot,
    Prediction,
    Recommendation,
    fitted_curve,
    predict,
    recommend,
)
from verl_s2d.planner.transfer import Travelled
from verl_s2d.recipe.planner_settings import STUDENT
from verl_s2d.stages.evaluate.statistics import mean_and_stderr
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import add_ledgers
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.stage import Context
from verl_s2d.workflow.store.manifest import read_manifest

PILOT = "pilot.json"
"""File of the result in the run directory."""
REUSE = (
    "The full run reuses data and models that scripts have made. Its training stages start anew: they read all labels, "
    "in another order, so no stage of the pilot is a prefix of one of theirs."
)


class PilotFailed(Exception):
    """A stage of the pilot failed; the run has shown why."""


@dataclass
class _Results:
    """Results of the rounds so far."""

    start: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)
    transfers: dict[tuple[str, str], list[Travelled]] = field(default_factory=dict)

    def enter(self, made: Round, context: Context) -> None:
        """Add a finished round."""
        for role, node in made.scores.items():
            right, before = right_of([node], context), self.curves.get(role)
            labels = (made.labels,) if before is None else (*before.labels, made.labels)
            self.curves[role] = Points(labels, right if before is None else np.vstack([before.right, right]))
        for transfer in made.transfers:
            travel = travel_of(transfer.node, context.directory(transfer.node))
            scored = dict(zip(model_steps(transfer.node), transfer.scores, strict=True))
            steps = [step for step in scored if step in travel]
            right = np.vstack([self.start[STUDENT], right_of([scored[step] for step in steps], context)])
            points = Travelled(transfer.labels, (0.0, *(travel[step] for step in steps)), right)
            self.transfers.setdefault((transfer.kind, transfer.teacher), []).append(points)


def run_pilot(
    pilot: PilotPlan,
    full_costs: Callable[[], Mapping[str, Mapping[str, Any]]],
    build: Callable[[Plan], bool],
    note: Callable[[str], None],
    budget: PilotBudget | None = None,
) -> dict[str, Any]:
    """Build the rounds, leaving out candidates that cannot win any more; return and write the result.

    Args:
        full_costs: checks the full runs and returns row -> cost, from sizing. Called when data and models exist, before
            anything is trained.
        build: builds a plan's missing stages; False if one failed.
        note: shows a line to the user.

    Raises:
        PilotFailed: a stage failed.
        UserError: bad input.
    """
    results, warnings = _Results(), []
    start = pilot.start()
    done = list(start.values())
    _require_built(build(pilot.plan(done)))
    costs = full_costs()
    context = pilot.context
    results.start = {role: right_of([node], context)[0] for role, node in start.items()}
    out, warned = _guarded(pilot, results.start)
    warnings += warned
    candidates = pilot.candidates(pilot.teachers)
    dropped = {c.name: out[c.teacher] for c in candidates if c.teacher in out}
    predictions, rounds = [], []
    for number, labels in enumerate(pilot.labels):
        left = [c for c in candidates if c.name not in dropped]
        if len(left) < 2 and len(candidates) > 1:
            warnings.append(f"rounds of the pilot: {number}, because one candidate is left")
            break
        roles = sorted(frozenset().union(*(c.needs for c in left)))
        taught = dict.fromkeys((c.transfer, c.teacher) for c in left if c.teacher is not None)
        made = pilot.round(number, roles, taught)
        problem = budget.problem(pilot.plan(done), pilot.plan(made.targets)) if budget is not None else None
        if problem is not None:
            warnings.append(f"rounds of the pilot: {number}, because {problem}")
            break
        note(f"pilot: round {number + 1} of {len(pilot.labels)}, {labels} labels, {', '.join(roles)}")
        _require_built(build(pilot.plan(made.targets)))
        done += made.targets
        results.enter(made, pilot.context)
        rounds.append({"labels": labels, "roles": roles})
        predictions = _predictions(pilot, results, left)
        if number + 1 < len(pilot.labels):
            lost = losers(predictions)
            dropped |= lost
            for name, reason in lost.items():
                note(f"pilot: no more pilot for {name}: {reason}")
    # Candidates that were dropped in a round have the predictions of that round's points.
    predictions = _predictions(pilot, results, [c for c in candidates if c.name not in dropped])
    told = _only(predictions) if len(predictions) == 1 and len(candidates) > 1 else recommend(predictions)
    final = {p.candidate.name: p for p in [*_predictions(pilot, results, candidates), *predictions]}
    warnings += _extrapolated(results, pilot.recipe.planner.thresholds.travel)
    warnings += _ceiling(results, final.values())
    result = {
        "recipe": pilot.recipe.name,
        "seed": pilot.seed,
        "labels": pilot.total,
        "level": LEVEL,
        "travel": pilot.recipe.planner.thresholds.travel,
        "problems": len(results.start[STUDENT]),
        "samples": pilot.recipe.planner.samples,
        "measured_on": "data.validation" if pilot.recipe.data.validation else "labels that the pilot does not train on",
        "rounds": rounds,
        "start": {role: _estimate(right) for role, right in results.start.items()},
        "curves": {
            role: _curve(points) | {"fit": fitted_curve(_measured(pilot, results), role)}
            for role, points in results.curves.items()
        },
        "transfers": [
            {"kind": kind, "teacher": role, **_taught(points)}
            for (kind, role), made in results.transfers.items()
            for points in made
        ],
        "candidates": [_entry(final[c.name], told, dropped.get(c.name), costs.get(c.name)) for c in candidates],
        "best": told.best,
        "verdict": told.text,
        "rivals": told.rivals,
        "warnings": warnings,
        "spent": _spent(pilot.plan(done)),
        "reuse": REUSE,
    }
    return write_pilot(result, context.run_dir)


def write_pilot(result: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Write a result; return it as it is read again."""
    write_json(result, run_dir / PILOT)
    return json.loads((run_dir / PILOT).read_text())


def read_pilot(run_dir: Path) -> dict[str, Any] | None:
    """Read the result of a run's pilot; None where there is none."""
    try:
        return json.loads((run_dir / PILOT).read_text())
    except (OSError, ValueError):
        return None


def _require_built(ok: bool) -> None:
    if not ok:
        raise PilotFailed


def _guarded(pilot: PilotPlan, start: Mapping[str, np.ndarray]) -> tuple[dict[str, str], list[str]]:
    """Compare every teacher with the student; return those that get no pilot, with reasons, and warnings."""
    bounds, out = pilot.recipe.planner.thresholds, {}
    warnings = overlap_warnings(pilot.context.run_dir, pilot.teachers, bounds.overlap)
    for role, right in start.items():
        if role == STUDENT:
            continue
        gap = gap_to_student(role, right, start[STUDENT], bounds.gap_se)
        if gap.warning is not None:
            warnings.append(gap.warning)
        if gap.weaker:
            out[role] = "its teacher is weaker than the student"
    return out, warnings


def _predictions(pilot: PilotPlan, results: _Results, candidates: Sequence[Candidate]) -> list[Prediction]:
    return predict(_measured(pilot, results), candidates)


def _measured(pilot: PilotPlan, results: _Results) -> Pilot:
    limit = pilot.recipe.planner.thresholds.travel
    return Pilot(pilot.total, results.start[STUDENT], results.curves, results.transfers, limit)


def _only(predictions: Sequence[Prediction]) -> Recommendation:
    """Recommend the candidate that is left when no other can win."""
    name = predictions[0].candidate.name
    return Recommendation(name, {name: 1.0})


def _extrapolated(results: _Results, limit: float) -> list[str]:
    """Warn of bridges that are predicted at more than twice the travel that the pilot has seen."""
    return [
        f"the bridge from {role} is predicted at travel {limit:g}, and the pilot's students had travelled "
        f"{max(points.travel[-1] for points in made):.2g}: more planner.pilot.updates would reach farther"
        for (_, role), made in results.transfers.items()
        if max(points.travel[-1] for points in made) < limit / 2
    ]


def _ceiling(results: _Results, predictions: Iterable[Prediction]) -> list[str]:
    """Warn of predictions above the share of problems that some model of the pilot has ever solved."""
    seen = [right.max(axis=0) for right in (p.right for p in results.curves.values())]
    seen += [points.right.max(axis=0) for made in results.transfers.values() for points in made]
    ceiling = float((np.max([*results.start.values(), *seen], axis=0) > 0).mean())
    above = [p.candidate.name for p in predictions if p.accuracy is not None and p.point > ceiling]
    if not above:
        return []
    return [
        f"{', '.join(above)}: predicted above {100 * ceiling:.0f} %, the share of problems that any model of the pilot "
        "has solved even once; the law knows no ceiling"
    ]


def _estimate(right: np.ndarray) -> dict[str, float]:
    mean, stderr = mean_and_stderr(right)
    return {"accuracy": mean, "stderr": stderr}


def _accuracies(right: np.ndarray) -> dict[str, list[float]]:
    found = [_estimate(row) for row in right]
    return {key: [entry[key] for entry in found] for key in ("accuracy", "stderr")}


def _curve(points: Points) -> dict[str, Any]:
    return {"labels": points.labels, **_accuracies(points.right)}


def _taught(points: Travelled) -> dict[str, Any]:
    return {"labels": points.labels, "travel": points.travel, **_accuracies(points.right)}


def _entry(
    prediction: Prediction, told: Recommendation, dropped: str | None, cost: Mapping[str, Any] | None
) -> dict[str, Any]:
    candidate = prediction.candidate
    entry: dict[str, Any] = {"name": candidate.name, "teacher": candidate.teacher, "share": candidate.share}
    entry |= {"accuracy": None, "low": None, "high": None}
    if prediction.accuracy is not None:
        low, high = prediction.interval
        entry |= {"accuracy": prediction.point, "low": low, "high": high}
    return entry | {
        "chance": told.chances.get(candidate.name),
        "problem": prediction.problem,
        "dropped": dropped,
        "cost": cost,
    }


def _spent(plan: Plan) -> dict[str, Any]:
    nodes: list[Node] = plan.order
    ledger = add_ledgers(read_manifest(plan.context.directory(node))["ledger"] for node in nodes)
    return ledger | {"labels": len(ledger["labels_read"]), "gpu_hours": gpu_hours(plan)}
