"""Run the rows of a study for some seeds, keep each seed's results, and print the tables over all seeds kept.

    python -m benchmarks.evidence run=DIR [study=quickstart] [seeds=0,1] [rows=full-bridge,exopd]   # resumable
    python -m benchmarks.evidence collect=DIR [study=quickstart] [commit=C]      # a run directory into seeds/
    python -m benchmarks.evidence [study=quickstart]                             # tables over seeds/
    python -m benchmarks.evidence power=8 [study=quickstart]     # differences that 8 seeds would show, by those kept

A seed's file has each row's right samples per problem, its ledger and the commit that ran it, so that seeds run on
different days make one table. A study with a pilot has a run directory for each seed, DIR/seed-N.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.kept import keep_rows, kept_rows
from benchmarks.evidence.pilot_picks import keep_pilot, picks
from benchmarks.evidence.power import power_table
from benchmarks.evidence.studies import STUDIES, Study
from benchmarks.evidence.tables import tables
from verl_s2d import arguments


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    run: str | None = None
    collect: str | None = None
    commit: str | None = None
    """Commit that ran; by default this checkout's."""
    study: str = "quickstart"
    seeds: str = "0"
    rows: str | None = None
    """Rows to run; by default all of the study."""
    power: int | None = None
    """Number of seeds for which to print what they would show."""
    side_by_side: int = 2
    """Stages at the same time, each on half of two cores."""


def main(options: Options) -> None:
    study = STUDIES[options.study]
    if options.run:
        rows = options.rows.split(",") if options.rows else study.rows
        for seeds, run_dir in _runs(study, options.seeds, Path(options.run)):
            if study.piloted:
                _verl_s2d("pilot", study, options, seeds, run_dir)
            quoted = ",".join(f'"{row}"' for row in rows)
            _verl_s2d("run", study, options, seeds, run_dir, f"rows=[{quoted}]")
            _keep(options, run_dir)
    elif options.collect:
        _keep(options, Path(options.collect))
    if options.power:
        print("\n".join(power_table(kept_rows(options.study), study.compared(), options.power)))
        return
    print(study_tables(options.study))


def study_tables(name: str) -> str:
    """Write the tables of a study over the seeds kept, rows in the study's order."""
    study, order = STUDIES[name], STUDIES[name].names()
    rows = sorted(kept_rows(name), key=lambda row: order.index(row.name) if row.name in order else len(order))
    return "\n".join([tables(rows, study.compared()), "", *picks(name)])


def _runs(study: Study, seeds: str, directory: Path) -> Iterator[tuple[str, Path]]:
    if study.piloted:
        yield from ((seed, directory / f"seed-{seed}") for seed in seeds.split(","))
    else:
        yield seeds, directory


def _verl_s2d(verb: str, study: Study, options: Options, seeds: str, run_dir: Path, *more: str) -> None:
    overrides = [*study.overrides, f"cluster.side_by_side={options.side_by_side}", *more]
    command = [sys.executable, "-m", "verl_s2d.cli", verb, str(study.recipe), *overrides]
    subprocess.run([*command, "--seeds", seeds, "--run-dir", str(run_dir)], check=True)


def _keep(options: Options, run_dir: Path) -> None:
    rows = keep_rows(options.study, run_dir, options.commit or _commit())
    keep_pilot(options.study, run_dir, rows)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return found.stdout.strip()


if __name__ == "__main__":
    arguments.run(main, Options)
