"""The quickstart's task: sums and differences of four one-digit numbers, from reasoning-gym's chain_sum.

    python tasks.py --out DIR [labelled=256] [evaluation=150] [seed=0]

Writes train.parquet (labelled problems) and eval.parquet in verl's columns. A prompt is the bare expression, such as
"2 + 7 - 3 + 1 ="; a response is written as running totals, "9 6 7", and its last number counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from reasoning_gym import create_dataset

from verl_s2d import arguments
from verl_s2d.data.files import write_parquet

TERMS = 4
LOWEST, HIGHEST = -45, 50
"""Integers that have a token: every running total of four one-digit numbers, and room for slips."""


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    out: str
    labelled: int = 256
    evaluation: int = 150
    seed: int = 0


def part_of(expression: str) -> Literal["problems", "pretraining"]:
    """The side of the one fixed division of all expressions that this one is on: a quarter are problems.

    Pre-training demonstrations come from the other three quarters, whatever seeds and sizes are chosen.
    """
    return "problems" if hashlib.sha256(expression.encode()).digest()[0] % 4 == 0 else "pretraining"


def entries(part: Literal["problems", "pretraining"], seed: int) -> Iterator[dict[str, Any]]:
    """Endless reasoning-gym entries of one part. Expressions may repeat."""
    # reasoning-gym derives entry i from seed + i, so that neighbouring seeds would share nearly all entries.
    dataset = create_dataset(
        "chain_sum",
        min_terms=TERMS,
        max_terms=TERMS,
        min_digits=1,
        max_digits=1,
        seed=seed * 1_000_000_007,
        size=1_000_000_000,
    )
    for index in range(len(dataset)):
        entry = dataset[index]
        if part_of(entry["metadata"]["expression"]) == part:
            yield entry


def problems(seed: int) -> Iterator[dict[str, Any]]:
    """Problems in verl's columns, no two alike."""
    seen = set()
    for entry in entries("problems", seed):
        expression = entry["metadata"]["expression"]
        if expression in seen:
            continue
        seen.add(expression)
        yield {
            "prompt": [{"role": "user", "content": f"{expression} ="}],
            "data_source": "reasoning_gym/chain_sum",
            "reward_model": {"style": "rule", "ground_truth": entry["answer"]},
            "extra_info": {
                "index": f"chain_sum-{seed}-{entry['metadata']['source_index']}",
                "entry": json.dumps(entry),
            },
        }


def main(options: Options) -> None:
    stream = problems(options.seed)
    for name, count in (("train", options.labelled), ("eval", options.evaluation)):
        write_parquet(pa.Table.from_pylist(list(islice(stream, count))), Path(options.out) / f"{name}.parquet")
        print(f"tasks: {count} problems in {name}.parquet")


if __name__ == "__main__":
    arguments.run(main, Options)
