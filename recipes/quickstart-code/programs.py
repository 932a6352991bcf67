"""Write problems of quickstart-code: a program for the line through two points, tested at inputs that no prompt shows.

    python programs.py --out DIR [labelled=256] [evaluation=150] [seed=0]

Writes train.parquet and eval.parquet in verl's columns. A prompt shows two neighbouring inputs with their outputs, such
as "2 -> 7 , 3 -> 10 :"; a response is a function f in a fenced block. The ground truth is one block of asserts, so that
one box runs them all.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))

from tasks import Options, part_of

from verl_s2d import arguments
from verl_s2d.data.files import write_parquet

STARTS, VALUES = range(1, 10), range(61)
SLOPES = [slope for slope in range(-9, 10) if slope not in (0, 1)]
"""Without those at which a wrong style of demonstration is right."""
LOWEST, HIGHEST = -9, 69
"""Integers that have a token: every output shown, and room for slips."""
HIDDEN = (-3, 12, 20)
"""Inputs of the tests, which no prompt shows."""
OPENING, CLOSING = "```python\ndef f(x):\n    return", "\n```"
"""First and last token of a program."""


class Line(NamedTuple):
    """The function (x - start) * slope + value."""

    start: int
    value: int
    slope: int

    def at(self, x: int) -> int:
        """Return the value at x."""
        return (x - self.start) * self.slope + self.value

    def prompt(self) -> str:
        """Show the outputs of the first two inputs."""
        return f"{self.start} -> {self.value} , {self.start + 1} -> {self.at(self.start + 1)} :"

    def body(self) -> str:
        """Write the expression that demonstrations have in the right style."""
        return f"( x - {self.start} ) * {self.slope} + {self.value}"


def lines(part: Literal["problems", "pretraining"], seed: int) -> Iterator[Line]:
    """Yield endless functions of one part, which is that of their prompts. Functions may repeat."""
    rng = random.Random(seed)
    while True:
        line = Line(rng.choice(STARTS), rng.choice(VALUES), rng.choice(SLOPES))
        if part_of(line.prompt()) == part:
            yield line


def problems(seed: int) -> Iterator[dict[str, Any]]:
    """Yield problems in verl's columns, no two alike."""
    seen = set()
    for line in lines("problems", seed):
        if line in seen:
            continue
        seen.add(line)
        tests = "\n".join(f"assert f({x}) == {line.at(x)}" for x in HIDDEN)
        yield {
            "prompt": [{"role": "user", "content": line.prompt()}],
            "data_source": "lines",
            "reward_model": {"style": "rule", "ground_truth": json.dumps({"assert_case": [tests]})},
            "extra_info": {
                "index": f"line-{seed}-{line.start}-{line.value}-{line.slope}",
                "solution": f"{OPENING} {line.body()} {CLOSING}",
            },
        }


def main(options: Options) -> None:
    stream = problems(options.seed)
    for name, count in (("train", options.labelled), ("eval", options.evaluation)):
        write_parquet(pa.Table.from_pylist(list(islice(stream, count))), Path(options.out) / f"{name}.parquet")
        print(f"programs: {count} problems in {name}.parquet")


if __name__ == "__main__":
    arguments.run(main, Options)
