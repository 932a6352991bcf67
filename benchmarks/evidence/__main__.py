"""Run rows of the quickstart for some seeds, keep each seed's results, and print the tables over all seeds kept.

    python -m benchmarks.evidence run=DIR [seeds=0,1] [rows=full-bridge,exopd]   # resumable; then as the next two
    python -m benchmarks.evidence collect=DIR [commit=C]                          # a run directory into seeds/
    python -m benchmarks.evidence                                                 # tables over seeds/

A seed's file has each row's right samples per problem, its ledger and the commit that ran it, so that seeds run on
different days make one table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.tables import tables
from verl_s2d import arguments
from verl_s2d.data.files import write_json
from verl_s2d.report.inputs import found_rows
from verl_s2d.report.row_results import LEDGER_IDS, LEDGER_NUMBERS, RowResult

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"
RECIPE = HERE.parents[1] / "recipes" / "quickstart" / "quickstart.yaml"
ROWS = (
    *("cold-student", "direct-grpo", "full-bridge", "half-split", "joint-kdrl", "no-teacher", "self-teacher"),
    *("shuffled-teacher", "exopd-1.0=methods.py:exopd_one", "exopd", "exopd-1.5=methods.py:exopd_far"),
    *("delta", "tip", "iw-opd", "paced"),
)
"""The controls, the methods at one setting each, and the joint loss against the sequence."""


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    run: str | None = None
    collect: str | None = None
    commit: str | None = None
    """Commit that ran; by default this checkout's."""
    seeds: str = "0"
    rows: str = ",".join(ROWS)


def main(options: Options) -> None:
    directory = options.run or options.collect
    if options.run:
        rows = ",".join(f'"{row}"' for row in options.rows.split(","))
        command = [sys.executable, "-m", "verl_s2d.cli", "run", str(RECIPE), f"rows=[{rows}]"]
        subprocess.run([*command, "--seeds", options.seeds, "--run-dir", options.run], check=True)
    if directory:
        collect(Path(directory), options.commit or _commit())
    print(tables(kept()))


def collect(run_dir: Path, commit: str) -> None:
    """Add the finished rows of a run directory to the files of their seeds."""
    for row in found_rows(run_dir):
        path = SEEDS / f"quickstart-{row.seed}.json"
        seed = json.loads(path.read_text()) if path.exists() else {"seed": row.seed, "rows": {}}
        seed["rows"][row.name] = {
            "commit": commit,
            "right": {
                name: {problem["id"]: problem["correct"] for problem in problems}
                for name, problems in row.result["per_problem"].items()
            },
            "sets": row.result["sets"],
            "ledger": {key: row.ledger.get(key, 0) for key in LEDGER_NUMBERS}
            | {key: len(row.ledger.get(key, ())) for key in LEDGER_IDS},
        }
        path.parent.mkdir(exist_ok=True)
        write_json(seed, path)


def kept() -> list[RowResult]:
    """Read the results of all seeds kept; ledgers have the numbers of ids in place of the ids."""
    found = []
    for path in sorted(SEEDS.glob("quickstart-*.json")):
        seed: dict[str, Any] = json.loads(path.read_text())
        for name, row in seed["rows"].items():
            per_problem = {
                of_set: [{"id": i, "correct": n, "samples": row["sets"][of_set]["samples"]} for i, n in right.items()]
                for of_set, right in row["right"].items()
            }
            result = {"sets": row["sets"], "per_problem": per_problem}
            found.append(RowResult(name, seed["seed"], result, row["ledger"]))
    return found


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    arguments.run(main, Options)
