"""Keep the rows of a run directory in a file for each seed, and read them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_s2d.data.files import write_json
from verl_s2d.report.inputs import found_rows
from verl_s2d.report.row_results import LEDGER_IDS, LEDGER_NUMBERS, RowResult

SEEDS = Path(__file__).parent / "seeds"


def keep_rows(study: str, run_dir: Path, commit: str) -> list[RowResult]:
    """Add the finished rows of a run directory to the files of their seeds; return them.

    A row that is kept already, with the same results, keeps the commit that ran it.
    """
    rows = found_rows(run_dir)
    for row in rows:
        entry = {
            "commit": commit,
            "right": {
                name: {problem["id"]: problem["correct"] for problem in problems}
                for name, problems in row.result["per_problem"].items()
            },
            "sets": row.result["sets"],
            "ledger": numbers(row.ledger),
        }
        seed = read_seed(study, row.seed)
        if (already := seed["rows"].get(row.name)) is not None and {**already, "commit": commit} == entry:
            continue
        seed["rows"][row.name] = entry
        write_seed(study, seed)
    return rows


def kept_rows(study: str) -> list[RowResult]:
    """Read the rows of all seeds kept; ledgers have the numbers of ids in place of the ids."""
    found = []
    for seed in kept_seeds(study):
        for name, row in seed["rows"].items():
            per_problem = {
                of_set: [{"id": i, "correct": n, "samples": row["sets"][of_set]["samples"]} for i, n in right.items()]
                for of_set, right in row["right"].items()
            }
            result = {"sets": row["sets"], "per_problem": per_problem}
            found.append(RowResult(name, seed["seed"], result, row["ledger"]))
    return found


def kept_seeds(study: str) -> list[dict[str, Any]]:
    """Read the files of a study in the order of their seeds."""
    return sorted((json.loads(p.read_text()) for p in SEEDS.glob(f"{study}-*.json")), key=lambda seed: seed["seed"])


def read_seed(study: str, seed: int) -> dict[str, Any]:
    """Read a seed's file; one without rows where there is none."""
    path = _path(study, seed)
    return json.loads(path.read_text()) if path.exists() else {"seed": seed, "rows": {}}


def write_seed(study: str, seed: dict[str, Any]) -> None:
    """Write a seed's file."""
    SEEDS.mkdir(exist_ok=True)
    write_json(seed, _path(study, seed["seed"]))


def numbers(ledger: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger with the number of ids in place of the ids."""
    return {key: ledger.get(key, 0) for key in LEDGER_NUMBERS} | {key: len(ledger.get(key, ())) for key in LEDGER_IDS}


def _path(study: str, seed: int) -> Path:
    return SEEDS / f"{study}-{seed}.json"
