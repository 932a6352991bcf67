"""Write files like the published sets, whose problems ask for the last digit of a sum.

Like the published file, the labelled one has rows that repeat others, and a problem that is in an evaluation set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from verl_s2d.data.files import write_parquet
from verl_s2d.data.templates import TEMPLATES


def problems() -> Iterator[tuple[str, int]]:
    """Yield distinct texts and their answers, the same at every call."""
    number = 0
    while True:
        a, b = 10 + number, 10 + 7 * number % 90
        yield f"What is the last digit of {a} + {b}?", (a + b) % 10
        number += 1


def write_sets(train: str, evaluation: Sequence[str], directory: Path, labelled: int, shown: int) -> dict[str, Path]:
    """Write a labelled set and the evaluation sets below `directory`.

    Args:
        labelled: number of distinct labelled problems that no evaluation set has.
        shown: number of problems of each evaluation set.

    Returns:
        Name of a set -> its parquet.
    """
    stream = problems()
    files = {name: directory / f"{name}.parquet" for name in (train, *evaluation)}
    rows: list[tuple[str, int]] = []
    for name in evaluation:
        rows = list(islice(stream, shown))
        _write_evaluation(rows, files[name])
    _write_labelled([*islice(stream, labelled), *rows[:1]], files[train])
    return files


def _write_labelled(rows: list[tuple[str, int]], path: Path) -> None:
    """DAPO-Math-17k's columns and template, each row twice."""
    table = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": TEMPLATES["dapo"].apply(text)}],
            "reward_model": {"style": "rule", "ground_truth": str(answer)},
            "extra_info": {"index": f"labelled-{number}"},
        }
        for number, (text, answer) in enumerate(rows)
    ]
    write_parquet(pa.Table.from_pylist(table * 2), path)


def _write_evaluation(rows: list[tuple[str, int]], path: Path) -> None:
    """Columns of the published evaluation sets."""
    table = [
        {"problem": text, "answer": str(answer), "unique_id": f"test/{path.stem}/{n}.json", "level": 1 + n % 5}
        for n, (text, answer) in enumerate(rows)
    ]
    write_parquet(pa.Table.from_pylist(table), path)
