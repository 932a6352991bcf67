"""Make the mediocre start of quickstart-code: a tiny Qwen3 model that has seen programs of mixed quality.

    python code_start.py --out DIR role=teacher|student [steps=N] [seed=0]

A demonstration is right, or forgets to subtract the first input, or looks at the first point alone and has the slope 1.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from programs import CLOSING, HIGHEST, LOWEST, OPENING, SLOPES, Line, lines

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))

from tiny_start import FIRST, SLIP, Demonstration, Options, Role, Styles, write_start

from verl_s2d import arguments

VOCABULARY = [
    *FIRST,
    *("->", ",", ":", OPENING, CLOSING, "x", "(", ")", "-", "*", "+"),
    *map(str, range(LOWEST, HIGHEST + 1)),
]
ROLES = {
    "teacher": Role(layers=3, steps=2500, styles=(0.34, 0.33, 0.33)),
    "student": Role(layers=2, steps=2500, styles=(0.15, 0.45, 0.40)),
}
"""Shares of demonstrations that are right, forget the first input, ignore the second point."""


def program(line: Line, styles: Styles, rng: random.Random) -> list[str]:
    """Write a program in one of the three styles, as tokens; its numbers slip now and then."""
    slope, value = _slipped(line.slope, SLOPES[0], SLOPES[-1], rng), _slipped(line.value, LOWEST, HIGHEST, rng)
    style = rng.choices(("right", "no start", "one point"), styles)[0]
    body = {
        "right": Line(line.start, value, slope).body(),
        "no start": f"x * {slope} + {value}",
        "one point": f"( x - {line.start} ) + {value}",
    }
    return [OPENING, *body[style].split(), CLOSING]


def _slipped(number: int, lowest: int, highest: int, rng: random.Random) -> int:
    if rng.random() < SLIP:
        number += rng.choice((-2, -1, 1, 2))
    return min(max(number, lowest), highest)


def demonstrations(styles: Styles, seed: int) -> Iterator[Demonstration]:
    """Yield endless demonstrations of functions that are no problems."""
    rng = random.Random(seed)
    for line in lines("pretraining", seed + 1):
        yield line.prompt().split(), program(line, styles, rng)


def main(options: Options) -> None:
    write_start(options, ROLES, VOCABULARY, demonstrations)


if __name__ == "__main__":
    arguments.run(main, Options)
