"""Relate the points that a row gains to what it cost, and to what its teacher gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from verl_s2d.recipe.method_rows import TEACHER_ROWS
from verl_s2d.report.by_row.flow import final_model, teachers_of
from verl_s2d.report.row_results import RowResult, on_same_problems
from verl_s2d.stages.evaluate.statistics import gain_share

COLD, DIRECT = "cold-student", "direct-grpo"
"""Rows that others are compared with: the student before training, and all labels spent on it."""


def hours_of(row: RowResult) -> dict[str, float | None]:
    """Sum the hours of all stages behind a row but its evaluations.

    Returns:
        hours: wall time; gpu_hours: each stage's wall time times the GPUs that the run held, None without GPUs or
            where their number is unknown.
    """
    behind = [(stage["seconds"] / 3600, stage.get("machine", {}).get("gpus")) for stage in _counted(row)]
    # Manifests of earlier versions do not have the machine.
    known = all(gpus is not None for _, gpus in behind)
    gpu_hours = sum(hours * gpus for hours, gpus in behind) if known else 0.0
    return {"hours": row.ledger.get("seconds", 0.0) / 3600, "gpu_hours": gpu_hours or None}


def gains_of(rows: Sequence[RowResult], sets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Map row name -> its hours, and for each set what it gained.

    A set's entry has points (a fraction, on COLD; None without that row), per_1000_calls, per_hour and per_gpu_hour
    (points; None where nothing was spent), and `share` of the teacher's gain: teacher (row name), mean, interval; None
    where no row evaluates the teacher or its gain is not clear.
    """
    by_name: dict[str, list[RowResult]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    return {name: _gain(members, by_name, sets) for name, members in by_name.items()}


def _gain(members: Sequence[RowResult], by_name: Mapping[str, list[RowResult]], sets: Sequence[str]) -> dict[str, Any]:
    hours = [hours_of(row) for row in members]
    gpu = [one["gpu_hours"] for one in hours if one["gpu_hours"] is not None]
    spent = {
        "hours": fmean(one["hours"] for one in hours),
        "gpu_hours": fmean(gpu) if len(gpu) == len(hours) else None,
    }
    calls = fmean(row.ledger.get("verifier_calls", 0) for row in members)
    cold = {row.seed: row for row in by_name.get(COLD, ())}
    name = members[0].name
    found: dict[str, Any] = {}
    for set_name in sets:
        points = None
        pairs = [(cold[row.seed], row) for row in members if row.seed in cold]
        pairs = [pair for pair in pairs if all(set_name in row.result["sets"] for row in pair)]
        if pairs and name != COLD and name not in TEACHER_ROWS:
            points = fmean(_average(row, set_name) - _average(start, set_name) for start, row in pairs)
        found[set_name] = {
            "points": points,
            "per_1000_calls": _per(points, calls / 1000),
            "per_hour": _per(points, spent["hours"]),
            "per_gpu_hour": _per(points, spent["gpu_hours"]),
            "share": _share(pairs, by_name, set_name) if points is not None else None,
        }
    return {**spent, "gains": found}


def _share(
    pairs: Sequence[tuple[RowResult, RowResult]], by_name: Mapping[str, list[RowResult]], set_name: str
) -> dict[str, Any] | None:
    """Compare a row with its only teacher, over the seeds in which a row evaluates that teacher."""
    names, seeds = set(), []
    for cold, student in pairs:
        teacher = _row_of_teacher(student, by_name)
        values = on_same_problems([cold, teacher, student], set_name) if teacher else None
        if values is not None:
            names.add(teacher.name)
            seeds.append(tuple(values))
    if len(names) != 1 or (interval := gain_share(seeds)) is None:
        return None
    return {"teacher": names.pop(), "mean": interval.mean, "interval": [interval.low, interval.high]}


def _row_of_teacher(student: RowResult, by_name: Mapping[str, list[RowResult]]) -> RowResult | None:
    """Find the row that evaluates the teacher of another one."""
    if len(teachers := teachers_of(student)) != 1:
        return None
    (model,) = teachers
    return next(
        (r for rows in by_name.values() for r in rows if r.seed == student.seed and final_model(r) == model), None
    )


def _counted(row: RowResult) -> list[Mapping[str, Any]]:
    """List the stages that a row's ledger counts: evaluations do not."""
    return [stage for stage in row.stages if stage["kind"] != "evaluate"]


def _average(row: RowResult, set_name: str) -> float:
    return row.result["sets"][set_name]["avg"]


def _per(points: float | None, amount: float | None) -> float | None:
    return None if points is None or not amount else points / amount
