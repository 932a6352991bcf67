"""Compare what a pilot picked with the best of the rows that were then run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.kept import kept_seeds, numbers, read_seed, write_seed
from benchmarks.evidence.markdown import head, line
from verl_s2d.planner.pilot import read_pilot
from verl_s2d.report.row_results import RowResult
from verl_s2d.stages.evaluate.statistics import mean_and_stderr
from verl_s2d.workflow.ledger import add_ledgers

COSTS = ("sampled_tokens", "verifier_calls")
TITLES = ("seed", "verdict", "picked", "its avg@16", "best row", "its avg@16", "behind +- s.e.", "tokens", "calls")


def keep_pilot(study: str, run_dir: Path, rows: Sequence[RowResult]) -> None:
    """Add to a seed's file its pilot, and what all rows together cost, each of their stages counted once."""
    pilot = read_pilot(run_dir)
    if pilot is None:
        return
    seed = read_seed(study, pilot["seed"])
    digests = {stage["digest"] for row in rows for stage in row.stages}
    manifests = [json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")]
    whole = add_ledgers(found["ledger"] for found in manifests if found["digest"] in digests)
    candidates = [
        {key: entry[key] for key in ("name", "accuracy", "low", "high", "dropped")} for entry in pilot["candidates"]
    ]
    seed["pilot"] = {
        **{key: pilot[key] for key in ("best", "verdict", "rivals", "warnings")},
        "candidates": candidates,
        "spent": {key: pilot["spent"][key] for key in COSTS},
        "whole": {key: numbers(whole)[key] for key in COSTS},
    }
    write_seed(study, seed)


def picks(study: str) -> list[str]:
    """Write the table of picks, a line a seed; cost is the pilot's in percent of that of all rows."""
    seeds = [seed for seed in kept_seeds(study) if "pilot" in seed]
    return [*head(*TITLES), *(_pick(seed) for seed in seeds)] if seeds else []


def behind_best(rows: Mapping[str, Mapping[str, Any]], picked: str | None) -> tuple[str, float, float]:
    """Find the best row; return its name and by how much the picked one is behind it, with the paired standard error.

    Args:
        rows: name -> entry of a seed's file.
        picked: name of a row; None takes the worst one's place, as a pilot that recommends nothing has not helped.
    """
    shares = {name: _shares(row) for name, row in rows.items()}
    means = {name: sum(found.values()) / len(found) for name, found in shares.items()}
    best = max(means, key=means.__getitem__)
    picked = picked if picked is not None else min(means, key=means.__getitem__)
    mean, stderr = mean_and_stderr([shares[best][key] - shares[picked][key] for key in shares[best]])
    return best, mean, stderr


def _pick(seed: dict[str, Any]) -> str:
    pilot, rows = seed["pilot"], seed["rows"]
    best, mean, stderr = behind_best(rows, pilot["best"])
    verdict = pilot["verdict"].split(":")[0]
    costs = [f"{pilot['spent'][key] / pilot['whole'][key]:.0%}" for key in COSTS]
    picked = pilot["best"]
    reached = f"{100 * _average(rows[picked]):.1f}" if picked is not None else "-"
    behind = f"{100 * mean:.1f} +- {100 * stderr:.1f}"
    return line(
        str(seed["seed"]), verdict, picked or "-", reached, best, f"{100 * _average(rows[best]):.1f}", behind, *costs
    )


def _average(row: Mapping[str, Any]) -> float:
    shares = _shares(row)
    return sum(shares.values()) / len(shares)


def _shares(row: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (name, problem): right / row["sets"][name]["samples"]
        for name, problems in row["right"].items()
        for problem, right in problems.items()
    }
