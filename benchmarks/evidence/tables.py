"""Write accuracies, ledgers and paired differences over seeds as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.evidence.markdown import head, line
from verl_s2d.report.row_results import RowResult, compare
from verl_s2d.stages.evaluate.statistics import mean_and_stderr

SET = "eval"
COLUMNS = ("labels_read", "verifier_calls", "sampled_tokens", "teacher_scored_tokens", "updates")
TITLES = ("labels", "verifier calls", "sampled tokens", "teacher-scored tokens", "updates")


def tables(rows: Sequence[RowResult], contrasts: Sequence[tuple[str, str]]) -> str:
    """Write both tables: rows in the order in which they first appear, and (row, row subtracted from it) as given."""
    members = by_name(rows)
    return "\n".join([*_accuracies(members), "", *_differences(members, contrasts)])


def by_name(rows: Sequence[RowResult]) -> dict[str, list[RowResult]]:
    """Group results by the name of their row, in the order of its first."""
    found: dict[str, list[RowResult]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return found


def difference(members: Mapping[str, list[RowResult]], name: str, base: str) -> dict[str, Any] | None:
    """Subtract row `base` from row `name`, paired by problem; None where no seed has both."""
    return compare(members.get(base, []), members.get(name, []), SET)


def _accuracies(members: Mapping[str, list[RowResult]]) -> list[str]:
    lines = head("row", "avg@16", "by seed", *TITLES)
    for name, seeds in members.items():
        values = {row.seed: 100 * row.result["sets"][SET]["avg"] for row in seeds}
        mean, stderr = mean_and_stderr(list(values.values()))
        whole = f"{mean:.1f} +- {stderr:.1f}" if len(values) > 1 else f"{mean:.1f}"
        ledger = [f"{fmean(row.ledger[key] for row in seeds):,.0f}" for key in COLUMNS]
        lines.append(line(name, whole, _by_seed(values), *ledger))
    return lines


def _differences(members: Mapping[str, list[RowResult]], contrasts: Sequence[tuple[str, str]]) -> list[str]:
    """Compare pairs.

    Over three seeds or more the interval is Student's over seeds, else each seed's own over problems.
    """
    lines = head("row - row", "points", "95 % interval", "by seed")
    for name, base in contrasts:
        found = difference(members, name, base)
        if found is None:
            continue
        values = {seed["seed"]: 100 * seed["mean"] for seed in found["per_seed"]}
        several = [f"{_interval(seed['interval'])} (seed {seed['seed']})" for seed in found["per_seed"]]
        interval = _interval(found["interval"]) if found["interval"] is not None else ", ".join(several)
        lines.append(line(f"{name} - {base}", f"{100 * found['mean']:+.1f}", interval, _by_seed(values)))
    return lines


def _by_seed(values: dict[int, float]) -> str:
    return ", ".join(f"{seed}: {value:.1f}" for seed, value in sorted(values.items()))


def _interval(bounds: Sequence[float]) -> str:
    return f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"
