"""Prompts without labels for the quickstart: expressions that are neither labelled nor evaluation problems there.

    python pool.py --out DIR [prompts=1000] [seed=0]

Writes prompts.parquet: the prompts alone, from the same side of the division of expressions as the problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import tasks

from verl_s2d import arguments
from verl_s2d.data.files import write_parquet

TAKEN = tasks.Options.labelled + tasks.Options.evaluation
"""Problems that tasks.py takes first, at its defaults."""


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    out: str
    prompts: int = 1000
    seed: int = 0


def main(options: Options) -> None:
    more = islice(tasks.problems(options.seed), TAKEN, TAKEN + options.prompts)
    rows = [{"prompt": row["prompt"], "data_source": row["data_source"]} for row in more]
    write_parquet(pa.Table.from_pylist(rows), Path(options.out) / "prompts.parquet")
    print(f"pool: {len(rows)} prompts in prompts.parquet")


if __name__ == "__main__":
    arguments.run(main, Options)
