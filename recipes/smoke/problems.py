"""The smokes' data: four small files like the published sets, through the preparation that the full recipes use.

    python problems.py --out DIR [labelled=24] [evaluation=4] [settings of `verl-s2d prepare` ...]

A problem asks for the last digit of a sum. Like the published file, the labelled one has rows that repeat others, and a
problem that is in an evaluation set.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from verl_s2d.data.files import write_parquet
from verl_s2d.data.prepare import Options, prepare, summary
from verl_s2d.data.templates import TEMPLATES
from verl_s2d.errors import UserError
from verl_s2d.recipe import arguments

LABELLED, EVALUATION = "dapo-math-17k", ("math500", "aime24", "aime25")


def problems() -> Iterator[tuple[str, int]]:
    """Texts, no two alike, and answers: the same at every call."""
    number = 0
    while True:
        a, b = 10 + number, 10 + 7 * number % 90
        yield f"What is the last digit of {a} + {b}?", (a + b) % 10
        number += 1


def labelled(rows: list[tuple[str, int]], path: Path) -> None:
    """DAPO-Math-17k's columns and template, each row twice."""
    prompts = [TEMPLATES["dapo"].apply(text) for text, _ in rows]
    table = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": "rule", "ground_truth": str(answer)},
            "extra_info": {"index": f"labelled-{number}"},
        }
        for number, (prompt, (_, answer)) in enumerate(zip(prompts, rows, strict=True))
    ]
    write_parquet(pa.Table.from_pylist(table * 2), path)


def evaluation(rows: list[tuple[str, int]], path: Path) -> None:
    """The evaluation sets' columns."""
    table = [
        {"problem": text, "answer": str(answer), "unique_id": f"test/{path.stem}/{n}.json", "level": 1 + n % 5}
        for n, (text, answer) in enumerate(rows)
    ]
    write_parquet(pa.Table.from_pylist(table), path)


def main(given: list[str]) -> None:
    counts = {"labelled": 24, "evaluation": 4}
    for argument in [a for a in given if a.partition("=")[0] in counts]:
        given.remove(argument)
        counts[argument.partition("=")[0]] = int(argument.partition("=")[2])
    stream = problems()
    with tempfile.TemporaryDirectory() as directory:
        files = {name: Path(directory) / f"{name}.parquet" for name in (LABELLED, *EVALUATION)}
        for name in EVALUATION:
            shown = list(islice(stream, counts["evaluation"]))
            evaluation(shown, files[name])
        labelled([*islice(stream, counts["labelled"]), shown[0]], files[LABELLED])
        sources = [f"sources.{name}={file}" for name, file in files.items()]
        print(summary(prepare(arguments.parse([*given, *sources], Options))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
