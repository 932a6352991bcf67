"""Parts of the published sets (tests/data) as the parquet files that `verl-s2d prepare` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.paths import ROOT

DATA = ROOT / "tests" / "data"
TRAIN, EVALUATION = "dapo-math-17k", ("aime24", "aime25", "math500")
SETS = (TRAIN, *EVALUATION)
_SUFFIX = r" Please reason step by step, and put your final answer within \boxed{}."


def rows(name: str) -> list[dict]:
    """Rows of a set in verl's columns; the texts of AIME's problems are placeholders."""
    found = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
    if not name.startswith("aime"):
        return found
    return [
        {
            "data_source": name.upper(),
            "prompt": [
                {"role": "user", "content": f"Problem {n} of AIME 20{name[-2:]}, whose text is not here.{_SUFFIX}"}
            ],
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"index": row["id"], "split": "test"},
        }
        for n, row in enumerate(found, 1)
    ]


def write_sets(directory: Path) -> dict[str, str]:
    """Write all sets; returns `sources` of data.prepare.Options: name -> parquet."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        pq.write_table(pa.Table.from_pylist(rows(name)), directory / f"{name}.parquet")
    return {name: str(directory / f"{name}.parquet") for name in SETS}


def math500_answers() -> list[str]:
    """Return the final answers of all problems of MATH-500."""
    return json.loads((DATA / "math500-answers.json").read_text())
