"""Write accuracies, ledgers and paired differences over seeds as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.evidence.markdown import head, line
from verl_s2d.report.row_results import RowResult, compare
from verl_s2d.stages.evaluate.statistics import mean_and_stderr

SET = "eval"
COLUMNS = ("labels_read", "verifier_calls", "sampled_tokens", "teacher_scored_tokens", "updates")
TITLES = ("labels", "verifier calls", "sampled tokens", "teacher-scored tokens", "updates")


def tables(rows: Sequence[RowResult], base: str) -> str:
    """Write both tables, differences to row `base`; rows in the order in which they first appear."""
    by_name: dict[str, list[RowResult]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    return "\n".join([*_accuracies(by_name), "", *_differences(by_name, base)])


def _accuracies(by_name: dict[str, list[RowResult]]) -> list[str]:
    lines = head("row", "avg@16", "by seed", *TITLES)
    for name, members in by_name.items():
        values = {row.seed: 100 * row.result["sets"][SET]["avg"] for row in members}
        mean, stderr = mean_and_stderr(list(values.values()))
        whole = f"{mean:.1f} +- {stderr:.1f}" if len(values) > 1 else f"{mean:.1f}"
        ledger = [f"{fmean(row.ledger[key] for row in members):,.0f}" for key in COLUMNS]
        lines.append(line(name, whole, _by_seed(values), *ledger))
    return lines


def _differences(by_name: dict[str, list[RowResult]], base: str) -> list[str]:
    """Compare with one row: over three seeds or more the interval is Student's over seeds, else each seed's own over
    problems."""
    lines = head(f"row - {base}", "points", "95 % interval", "by seed")
    for name, members in by_name.items():
        found = compare(by_name.get(base, []), members, SET) if name != base else None
        if found is None:
            continue
        values = {seed["seed"]: 100 * seed["mean"] for seed in found["per_seed"]}
        several = [f"{_interval(seed['interval'])} (seed {seed['seed']})" for seed in found["per_seed"]]
        interval = _interval(found["interval"]) if found["interval"] is not None else ", ".join(several)
        lines.append(line(name, f"{100 * found['mean']:+.1f}", interval, _by_seed(values)))
    return lines


def _by_seed(values: dict[int, float]) -> str:
    return ", ".join(f"{seed}: {value:.1f}" for seed, value in sorted(values.items()))


def _interval(bounds: Sequence[float]) -> str:
    return f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"
