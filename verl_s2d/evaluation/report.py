"""The report over rows and seeds: what each row reached and what it consumed, with plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_s2d.data.files import write_json, written_whole
from verl_s2d.evaluation.stats import mean_and_stderr, paired_bootstrap, t_interval

LEDGER_NUMBERS = ("verifier_calls", "sampled_tokens", "teacher_scored_tokens", "updates", "seconds")


@dataclass(frozen=True)
class Match:
    """Where a matched row was to stop, and where it did: `reached` of the `wanted` items `by` of the row `to`."""

    to: str
    by: str
    wanted: int
    reached: int


@dataclass(frozen=True)
class RowResult:
    """One row under one seed.

    Attributes:
        result: result.json of its evaluation.
        ledger: labels_read (problem ids), verifier_calls, sampled_tokens, teacher_scored_tokens, updates, seconds.
        stages: the stages behind it, each with kind, name, dir, digest, seconds, updates.
        matched: of a row that stops where another one ended.
    """

    name: str
    seed: int
    result: Mapping[str, Any]
    ledger: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]] = ()
    matched: Match | None = None


@dataclass(frozen=True)
class Report:
    """Everything the report says.

    Attributes:
        data: content of report.json; accuracies are fractions.
    """

    data: dict[str, Any]

    def table(self) -> str:
        """The rows, and their paired differences where there are any, as text for a terminal."""
        from verl_s2d.evaluation.tables import terminal

        return terminal(self.data)

    def to_json(self) -> str:
        """Content of report.json."""
        return json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False)

    def markdown(self) -> str:
        """Content of report.md."""
        from verl_s2d.evaluation.tables import markdown

        return markdown(self.data)


Published = Mapping[str, Mapping[str, float]]
"""avg@k in percent that somebody published: row -> evaluation set -> value."""


def write_report(rows: Sequence[RowResult], out_dir: str | Path, published: Published | None = None) -> Report:
    """Write report.json, report.md, accuracy.png and, if any stage logged curves, curves.png.

    Args:
        rows: in the order in which they are to be shown; a name occurs once a seed.
        published: shown beside them.
    """
    from verl_s2d.evaluation.plots import plot_accuracy, plot_curves, read_curves

    out = Path(out_dir)
    report = build_report(rows, published)
    stages = {stage["digest"]: {**stage, "seed": row.seed} for row in rows for stage in row.stages}
    curves = read_curves(list(stages.values()))
    with written_whole(out / "accuracy.png") as temporary:
        plot_accuracy(report.data, temporary)
    report.data["plots"] = ["accuracy.png"]
    if curves:
        with written_whole(out / "curves.png") as temporary:
            plot_curves(curves, temporary)
        report.data["plots"].append("curves.png")
    with written_whole(out / "report.md") as temporary:
        temporary.write_text(report.markdown())
    write_json(report.data, out / "report.json")
    return report


def build_report(rows: Sequence[RowResult], published: Published | None = None) -> Report:
    """Aggregate rows over their seeds, and compare them pairwise within a seed.

    Raises:
        ValueError: no rows, or a row given twice for a seed.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    cells = {(row.name, row.seed): row for row in rows}
    if not rows or len(cells) != len(rows):
        raise ValueError("a report needs at least one row, each once a seed")
    by_name = {name: [row for row in rows if row.name == name] for name in names}
    sets = list(dict.fromkeys(name for row in rows for name in row.result["sets"]))
    return Report(
        {
            "seeds": sorted({row.seed for row in rows}),
            "sets": sets,
            "samples": sorted({values["samples"] for row in rows for values in row.result["sets"].values()}),
            "rows": [
                _row(name, members, sets) | {"published": dict((published or {}).get(name, {}))}
                for name, members in by_name.items()
            ],
            "differences": [
                difference
                for a, b in combinations(names, 2)
                for set_name in sets
                if (difference := _difference(by_name[a], by_name[b], set_name)) is not None
            ],
        }
    )


def _row(name: str, members: Sequence[RowResult], sets: Sequence[str]) -> dict[str, Any]:
    ledger: dict[str, Any] = {key: fmean(row.ledger[key] for row in members) for key in LEDGER_NUMBERS}
    return {
        "name": name,
        "seeds": [row.seed for row in members],
        "sets": {s: _accuracy([row for row in members if s in row.result["sets"]], s) for s in sets},
        # Means over seeds. Labels are a set in each seed, so here only their number.
        "ledger": {"labels_read": fmean(len(row.ledger["labels_read"]) for row in members), **ledger},
        "per_seed": [
            {
                "seed": row.seed,
                "ledger": dict(row.ledger),
                "stages": [dict(stage) for stage in row.stages],
                "matched": None if row.matched is None else asdict(row.matched),
            }
            for row in members
        ],
    }


def _accuracy(members: Sequence[RowResult], set_name: str) -> dict[str, Any] | None:
    """avg with a standard error: over problems for a single seed, over seeds for several."""
    if not members:
        return None
    results = [row.result["sets"][set_name] for row in members]
    averages = [result["avg"] for result in results]
    summary: dict[str, Any] = {
        "avg": fmean(averages),
        "stderr": results[0]["stderr"],
        "stderr_over": "problems",
        "interval": None,
        "pass_at": {k: fmean(r["pass_at"][k] for r in results) for k in results[0]["pass_at"]},
        "mean_tokens": fmean(r["mean_tokens"] for r in results),
        "truncated": fmean(r["truncated"] for r in results),
        "levels": {
            level: fmean(r["levels"][level]["avg"] for r in results)
            # Results of earlier versions have no levels.
            for level in results[0].get("levels", {})
            if all(level in r.get("levels", {}) for r in results)
        },
        "per_seed": [
            {"seed": row.seed, "avg": r["avg"], "stderr": r["stderr"]} for row, r in zip(members, results, strict=True)
        ],
    }
    if len(members) > 1:
        summary |= {
            "stderr": mean_and_stderr(averages).stderr,
            "stderr_over": "seeds",
            "interval": _interval_over_seeds(averages),
        }
    return summary


def _interval_over_seeds(values: Sequence[float]) -> list[float] | None:
    """95 % t interval; None for two seeds, where its width is mostly luck."""
    if len(values) < 3:
        return None
    interval = t_interval(values)
    return [interval.low, interval.high]


def _difference(a: Sequence[RowResult], b: Sequence[RowResult], set_name: str) -> dict[str, Any] | None:
    """b minus a, paired by problem within a seed; None if no seed has both on the same problems."""
    others = {row.seed: row for row in a}
    per_seed = []
    for row in b:
        other = others.get(row.seed)
        pair = _paired(other, row, set_name) if other else None
        if pair is not None:
            interval = paired_bootstrap(*pair)
            per_seed.append({"seed": row.seed, "mean": interval.mean, "interval": [interval.low, interval.high]})
    if not per_seed:
        return None
    means = [entry["mean"] for entry in per_seed]
    return {
        "row": b[0].name,
        "minus": a[0].name,
        "set": set_name,
        "mean": fmean(means),
        "interval": per_seed[0]["interval"] if len(means) == 1 else _interval_over_seeds(means),
        "interval_over": "problems" if len(means) == 1 else "seeds",
        "per_seed": per_seed,
    }


def _paired(a: RowResult, b: RowResult, set_name: str) -> tuple[list[float], list[float]] | None:
    first, second = (
        {p["id"]: p["correct"] / p["samples"] for p in row.result["per_problem"].get(set_name, ())} for row in (a, b)
    )
    if not first or first.keys() != second.keys():
        return None
    return list(first.values()), [second[i] for i in first]
