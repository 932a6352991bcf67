"""Write a pilot's page as text, and the table of predictions and outcomes of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.planner.pilot import read_pilot
from verl_s2d.report.table_text import MISSING, Column, Table, as_text, words


def pilot_text(result: Mapping[str, Any], run_dir: Path) -> str:
    """Describe a pilot: learning curves, transfers, the candidates with intervals and costs, and the verdict."""
    head = (
        f"{result['recipe']}: pilot for {result['labels']:,} labels, seed {result['seed']}; accuracies in percent over "
        f"{result['problems']} problems ({result['measured_on']}), {result['samples']} samples each"
    )
    parts: list[str | Table] = [head, "", "GRPO, by labels:", _curves(result), ""]
    if result["transfers"]:
        parts += ["2b from each teacher, up to the last evaluation:", _transfers(result), ""]
    parts += [f"After the full run ({100 * result['level']:.0f} % interval, upper bounds of the cost):"]
    parts += [_candidates(result), "", f"Verdict: {result['verdict']}."]
    parts += [f"- {entry['name']}: {reason}" for entry in result["candidates"] if (reason := _reason(entry))]
    parts += [f"- {warning}" for warning in result["warnings"]]
    parts += ["", _spent(result["spent"]), result["reuse"], *_calibration_parts(run_dir)]
    return as_text(*parts)


def calibration_text(run_dir: Path) -> str | None:
    """Lay outcomes beside predictions, of all runs beside this one; None without any outcome."""
    parts = _calibration_parts(run_dir)
    return as_text(*parts) if parts else None


def calibrated(run_dir: Path) -> list[dict[str, Any]]:
    """List the predicted candidates that have an outcome, of all runs in the directory that this run is in."""
    return [
        {
            "run": directory.name,
            **{key: entry[key] for key in ("name", "accuracy", "low", "high")},
            "outcome": entry["outcome"]["accuracy"],
            "stderr": entry["outcome"]["stderr"],
            "measured_on": entry["outcome"]["measured_on"],
            "error": entry["accuracy"] - entry["outcome"]["accuracy"],
            "inside": entry["low"] <= entry["outcome"]["accuracy"] <= entry["high"],
        }
        for directory, result in _pilots(run_dir)
        for entry in result["candidates"]
        if entry.get("outcome") and entry["accuracy"] is not None
    ]


def _pilots(run_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for directory in sorted(run_dir.resolve().parent.iterdir()):
        if directory.is_dir() and (result := read_pilot(directory)) is not None:
            yield directory, result


def _calibration_parts(run_dir: Path) -> list[str | Table]:
    found = calibrated(run_dir)
    if not found:
        return []
    columns = [*words("run", "row"), *map(Column, ("predicted", "interval", "outcome", "error"))]
    lines = [
        [
            *(entry["run"], entry["name"], _percent(entry["accuracy"]), _interval(entry)),
            *(f"{_percent(entry['outcome'])} +- {_percent(entry['stderr'])}", f"{100 * entry['error']:+.1f}"),
            *("yes" if entry["inside"] else "no", entry["measured_on"]),
        ]
        for entry in found
    ]
    inside = sum(entry["inside"] for entry in found)
    error = sum(abs(entry["error"]) for entry in found) / len(found)
    return [
        "",
        "Predictions and outcomes:",
        Table("", [*columns, *words("inside", "measured on")], lines),
        f"{inside} of {len(found)} outcomes are inside their interval; the mean error is {100 * error:.1f} points.",
    ]


def _curves(result: Mapping[str, Any]) -> Table:
    labels = sorted({n for curve in result["curves"].values() for n in curve["labels"]})
    columns = [*words("model"), *map(Column, ("0", *(f"{n:,}" for n in labels)))]
    lines = []
    for role, start in result["start"].items():
        curve = result["curves"].get(role, {"labels": [], "accuracy": [], "stderr": []})
        found = dict(zip(curve["labels"], zip(curve["accuracy"], curve["stderr"], strict=True), strict=True))
        cells = [_plus_minus(*found[n]) if n in found else MISSING for n in labels]
        lines.append([role, _plus_minus(start["accuracy"], start["stderr"]), *cells])
    return Table("", columns, lines)


def _transfers(result: Mapping[str, Any]) -> Table:
    columns = [*words("bridge", "teacher"), *map(Column, ("its labels", "travel", "student"))]
    lines = [
        [
            *(made["kind"], made["teacher"], f"{made['labels']:,}", f"{made['travel'][-1]:.2f}"),
            _plus_minus(made["accuracy"][-1], made["stderr"][-1]),
        ]
        for made in result["transfers"]
    ]
    return Table("", columns, lines)


def _candidates(result: Mapping[str, Any]) -> Table:
    columns = [*words("row", "teacher"), *map(Column, ("predicted", "interval", "best in"))]
    columns += map(Column, ("tokens", "verifier calls", "GPU-hours"))
    lines = []
    for entry in result["candidates"]:
        known, cost = entry["accuracy"] is not None, entry["cost"] or {}
        lines.append(
            [
                *(entry["name"], entry["teacher"] or MISSING),
                *([_percent(entry["accuracy"]), _interval(entry)] if known else [MISSING, MISSING]),
                MISSING if entry["chance"] is None else f"{100 * entry['chance']:.0f} %",
                *(_number(cost.get(key)) for key in ("sampled_tokens", "verifier_calls", "gpu_hours")),
            ]
        )
    return Table("", columns, lines)


def _reason(entry: Mapping[str, Any]) -> str | None:
    """Say why a candidate is out: it was dropped, or cannot be predicted."""
    return f"no more pilot: {entry['dropped']}" if entry["dropped"] else entry["problem"]


def _spent(spent: Mapping[str, Any]) -> str:
    return (
        f"The pilot took {spent['labels']:,} labels, {spent['verifier_calls']:,} verifier calls, "
        f"{spent['sampled_tokens']:,} sampled tokens and {spent['gpu_hours']:.2g} hours of its GPUs or machine."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _plus_minus(mean: float, stderr: float) -> str:
    return f"{100 * mean:.1f} +- {100 * stderr:.1f}"


def _interval(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,}"
