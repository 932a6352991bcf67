"""Make the quickstart's mediocre start: a tiny Qwen3 model that has seen demonstrations of mixed quality.

    python pretrain.py --out DIR role=teacher|student [steps=N] [seed=0]

A demonstration has the right running totals, or totals that ignore the minus signs, or one total too few; so the model
knows several styles of which one is right, which is what reinforcement learning can then sort out. The teacher has seen
more good ones, is one layer deeper and is trained for longer: what it can still learn from labels is which style is
right, rather than how to add.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks import HIGHEST, LOWEST, entries
from tiny_start import FIRST, SLIP, Demonstration, Options, Role, Styles, write_start

from verl_s2d import arguments

VOCABULARY = [*FIRST, "+", "-", "=", *map(str, range(LOWEST, HIGHEST + 1))]
ROLES = {
    "teacher": Role(layers=3, steps=2500, styles=(0.34, 0.33, 0.33)),
    "student": Role(layers=2, steps=800, styles=(0.15, 0.45, 0.40)),
}
"""Shares of demonstrations that are right, ignore the minus signs, stop one total too early."""


def demonstration(expression: str, styles: Styles, rng: random.Random) -> list[str]:
    """Write running totals in one of the three styles, as words; one in many is off by up to three."""
    words = expression.split()
    ignores_minus, stops_early = (
        rng.choices(("right", "no minus", "short"), styles)[0] == s for s in ("no minus", "short")
    )
    total, totals = int(words[0]), []
    for sign, term in zip(words[1::2], words[2::2], strict=True):
        total += int(term) if sign == "+" or ignores_minus else -int(term)
        if rng.random() < SLIP:
            total += rng.choice((-3, -2, -1, 1, 2, 3))
        totals.append(str(min(max(total, LOWEST), HIGHEST)))
    return totals[:-1] if stops_early else totals


def demonstrations(styles: Styles, seed: int) -> Iterator[Demonstration]:
    """Yield endless demonstrations of expressions that are no problems."""
    rng = random.Random(seed)
    for entry in entries("pretraining", seed + 1):
        expression = entry["metadata"]["expression"]
        yield [*expression.split(), "="], demonstration(expression, styles, rng)


def main(options: Options) -> None:
    write_start(options, ROLES, VOCABULARY, demonstrations)


if __name__ == "__main__":
    arguments.run(main, Options)
