"""Write problems of quickstart-logic: knights and knaves, three people who say one sentence each, from reasoning-gym.

    python puzzles.py --out DIR [labelled=256] [evaluation=150] [seed=0]

Writes train.parquet and eval.parquet in verl's columns. The puzzles are those of knights_knaves in few words: people
have the same three names in all of them, and are knights, who never lie, or knaves, who always do. A prompt is
"Emma: Liam is a knave and Noah is a knight . Liam: not Emma is a knight . Noah: Emma is a knave =".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from reasoning_gym import create_dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))

from tasks import Options, part_of

from verl_s2d import arguments
from verl_s2d.data.files import write_parquet

NAMES = ("Emma", "Liam", "Noah")
DATASET, DEPTH, WIDTH = "knights_knaves", 2, 2
"""A sentence says something about one person or two, or denies something about one."""
_TERMS = {"knight": "knight", "knave": "knave", "a_knight": "a knight", "a_knave": "a knave"}
BETWEEN = ("and", "or")
"""Operators between two statements. Puzzles with implications are left out: they are too hard for these models."""

Statement = Sequence[Any]
"""reasoning-gym's: (telling-truth or lying, person), or an operator and such statements."""


def phrase(person: int, knight: bool) -> str:
    """Say what a person is; one token."""
    return f"{NAMES[person]} is a {'knight' if knight else 'knave'}"


def words(statements: Sequence[Statement]) -> list[str]:
    """Write a puzzle's prompt as tokens."""
    written = []
    for person, statement in enumerate(statements):
        written += [f"{NAMES[person]}:", *_said(statement), "." if person < len(NAMES) - 1 else "="]
    return written


def _said(statement: Statement) -> list[str]:
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        return [phrase(parts[0], kind == "telling-truth")]
    if kind == "not":
        return ["not", *_said(parts[0])]
    left, right = map(_said, parts)
    return [*left, kind, *right]


def answer(roles: Sequence[bool]) -> list[str]:
    """Write who is a knight as tokens; for three people they have the words of reasoning-gym's own answer."""
    *first, last = (phrase(person, knight) for person, knight in enumerate(roles))
    return [*first, "and", last]


def entries(seed: int) -> Iterator[dict[str, Any]]:
    """Yield endless reasoning-gym entries of the problems' part, people renamed. Puzzles may repeat."""
    # reasoning-gym derives entry i from seed + i, so that neighbouring seeds would share nearly all entries.
    dataset = create_dataset(
        DATASET,
        n_people=len(NAMES),
        depth_constraint=DEPTH,
        width_constraint=WIDTH,
        seed=seed * 1_000_000_007,
        size=1_000_000_000,
    )
    for index in range(len(dataset)):
        metadata = dataset[index]["metadata"]
        if any(statement[0] in ("->", "<=>") for statement in metadata["statements"]):
            continue
        prompt = " ".join(words(metadata["statements"]))
        if part_of(prompt) == "problems":
            *first, last = (phrase(person, knight) for person, knight in enumerate(metadata["solution"]))
            yield {
                "question": prompt,
                "answer": f"{', '.join(first)}, and {last}.",
                "metadata": {**metadata, "names": list(NAMES), "knight_knave_terms": _TERMS},
            }


def problems(seed: int) -> Iterator[dict[str, Any]]:
    """Yield problems in verl's columns, no two alike."""
    seen = set()
    for entry in entries(seed):
        if entry["question"] in seen:
            continue
        seen.add(entry["question"])
        yield {
            "prompt": [{"role": "user", "content": entry["question"]}],
            "data_source": f"reasoning_gym/{DATASET}",
            "reward_model": {"style": "rule", "ground_truth": entry["answer"]},
            "extra_info": {
                "index": f"{DATASET}-{seed}-{entry['metadata']['source_index']}",
                "entry": json.dumps(entry),
            },
        }


def main(options: Options) -> None:
    stream = problems(options.seed)
    for name, count in (("train", options.labelled), ("eval", options.evaluation)):
        write_parquet(pa.Table.from_pylist(list(islice(stream, count))), Path(options.out) / f"{name}.parquet")
        print(f"puzzles: {count} problems in {name}.parquet")


if __name__ == "__main__":
    arguments.run(main, Options)
