"""Statistics of a row over its seeds, and the paired difference of two rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from verl_s2d.stages.evaluate.statistics import mean_and_stderr, paired_bootstrap, t_interval

LEDGER_IDS = ("labels_read", "prompts_read")
LEDGER_NUMBERS = (
    *("verifier_calls", "unsettled_calls", "unscored_calls", "judge_calls", "judge_tokens"),
    *("sampled_tokens", "teacher_scored_tokens", "updates", "seconds"),
)


@dataclass(frozen=True)
class Match:
    """Budget of a matched row, `wanted` items of kind `by` that row `to` consumed, and the `reached` consumption."""

    to: str
    by: str
    wanted: int
    reached: int


@dataclass(frozen=True)
class RowResult:
    """Result of a row under one seed.

    Attributes:
        result: content of its evaluation's result.json.
        ledger: labels_read and prompts_read (ids), verifier_calls, unsettled_calls, unscored_calls, judge_calls,
            judge_tokens, sampled_tokens, teacher_scored_tokens, updates, seconds.
        stages: the stages it is built from, inputs before users, each with kind, name (which may end in "(seed N)"),
            digest, seconds and updates; if known attempts, began and ended (epoch seconds), versions (package ->
            version), machine, curves (`curves.curves_of`), alarms (step, text) and `by_row.stage_entries.part_in_flow`.
        matched: budget of a row that stops at the consumption of another one.
        answers: given a set and ids of problems, reads their samples (rows of generations.parquet); None: not stored.
    """

    name: str
    seed: int
    result: Mapping[str, Any]
    ledger: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]] = ()
    matched: Match | None = None
    answers: Callable[[str, Sequence[str]], Sequence[Mapping[str, Any]]] | None = field(default=None, compare=False)


def summarise_row(name: str, members: Sequence[RowResult], sets: Sequence[str]) -> dict[str, Any]:
    """Average a row over its seeds: accuracy on every set (None without results) and ledger."""
    ledger: dict[str, Any] = {key: fmean(row.ledger.get(key, 0) for row in members) for key in LEDGER_NUMBERS}
    return {
        "name": name,
        "seeds": [row.seed for row in members],
        "sets": {s: _accuracy([row for row in members if s in row.result["sets"]], s) for s in sets},
        # Means over seeds; of the ids, which are a set per seed, their number.
        "ledger": {key: fmean(len(row.ledger.get(key, ())) for row in members) for key in LEDGER_IDS} | ledger,
        "per_seed": [
            {
                "seed": row.seed,
                "ledger": dict(row.ledger),
                "stages": [stage["digest"] for stage in row.stages],
                "matched": None if row.matched is None else asdict(row.matched),
            }
            for row in members
        ],
    }


def _accuracy(members: Sequence[RowResult], set_name: str) -> dict[str, Any] | None:
    """Average the accuracy; the standard error is over problems for one seed, over seeds for several."""
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
        "n_problems": results[0]["n_problems"],
        "mean_tokens": fmean(r["mean_tokens"] for r in results),
        "truncated": fmean(r["truncated"] / (r["samples"] * r["n_problems"]) for r in results),
        "levels": _parts(results, "levels"),
        "sources": _parts(results, "sources"),
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


def _parts(results: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """Average the parts of a set: its `levels` or its data `sources`, which results of earlier versions do not have."""
    parts = (part for part in results[0].get(kind, {}) if all(part in r.get(kind, {}) for r in results))
    return {part: _level([r[kind][part] for r in results]) for part in parts}


def _level(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average one level of a set over seeds, with its standard error as for the whole set."""
    averages = [result["avg"] for result in results]
    stderr = mean_and_stderr(averages).stderr if len(averages) > 1 else results[0]["stderr"]
    return {"n_problems": results[0]["n_problems"], "avg": fmean(averages), "stderr": stderr}


def _interval_over_seeds(values: Sequence[float]) -> list[float] | None:
    """Compute the 95 % t interval; None for two seeds, whose spread says little about its width."""
    if len(values) < 3:
        return None
    interval = t_interval(values)
    return [interval.low, interval.high]


def compare(a: Sequence[RowResult], b: Sequence[RowResult], set_name: str) -> dict[str, Any] | None:
    """Subtract a from b, paired by problem within a seed; None if no seed has both on the same problems."""
    others = {row.seed: row for row in a}
    per_seed = []
    for row in b:
        other = others.get(row.seed)
        pair = on_same_problems([other, row], set_name) if other else None
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


def on_same_problems(rows: Sequence[RowResult], set_name: str) -> list[list[float]] | None:
    """Return the accuracy of each row on each problem of a set, in the same order; None if their problems differ.

    A problem that the verifier could not judge for one of them is left out for all.
    """
    left_out = {i for row in rows for i in row.result["sets"].get(set_name, {}).get("left_out", ())}
    first, *others = (
        {
            p["id"]: p["correct"] / p["samples"]
            for p in row.result["per_problem"].get(set_name, ())
            if p["id"] not in left_out
        }
        for row in rows
    )
    if not first or any(other.keys() != first.keys() for other in others):
        return None
    return [[values[i] for i in first] for values in (first, *others)]
