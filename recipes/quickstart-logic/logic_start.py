"""Make the mediocre start of quickstart-logic: a tiny Qwen3 model that has seen solutions of mixed quality.

    python logic_start.py --out DIR role=teacher|student [steps=N] [seed=0]

A demonstration is right, or believes everybody (whoever says what would be true among knights is called a knight), or
stops one person too early. Puzzles are drawn here as reasoning-gym's sampler draws them, in a fraction of its time.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from puzzles import BETWEEN, NAMES, Statement, answer, phrase, words

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))

from tasks import part_of
from tiny_start import FIRST, SLIP, Demonstration, Options, Role, Styles, write_start

from verl_s2d import arguments

PEOPLE = range(len(NAMES))
WORLDS = list(itertools.product((True, False), repeat=len(NAMES)))
"""All assignments of knights and knaves to the people."""
VOCABULARY = [
    *FIRST,
    *(f"{name}:" for name in NAMES),
    *(phrase(person, knight) for person in PEOPLE for knight in (True, False)),
    *(*BETWEEN, "not", ".", "="),
]
ROLES = {
    "teacher": Role(layers=3, steps=2500, styles=(0.34, 0.33, 0.33)),
    "student": Role(layers=2, steps=800, styles=(0.15, 0.45, 0.40)),
}
"""Shares of demonstrations that are right, believe everybody, stop too early."""


def holds(statement: Statement, world: Sequence[bool]) -> bool:
    """Tell whether a statement is true where these people are knights."""
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        return world[parts[0]] == (kind == "telling-truth")
    truth = [holds(part, world) for part in parts]
    if kind == "not":
        return not truth[0]
    return all(truth) if kind == "and" else any(truth)


def solutions(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """List the worlds in which knights alone say what is true."""
    return [world for world in WORLDS if all(world[p] == holds(statements[p], world) for p in PEOPLE)]


def statement(person: int, rng: random.Random) -> Statement:
    """Draw what a person says, as reasoning-gym does at these depth and width, without implications."""
    dice = rng.randrange(4)
    first = _simple(person, rng)
    if dice == 0:
        return first
    if dice == 1:
        return ("not", first)
    second = first
    while second == first:
        second = _simple(person, rng)
    return (BETWEEN[dice - 2], first, second)


def _simple(person: int, rng: random.Random) -> Statement:
    """Draw a statement about one person. Nobody says that he lies."""
    while True:
        kind, about = rng.choice(("telling-truth", "lying")), rng.choice(PEOPLE)
        if (kind, about) != ("lying", person):
            return (kind, about)


def demonstrations(styles: Styles, seed: int) -> Iterator[Demonstration]:
    """Yield endless demonstrations of puzzles that are no problems and have one solution; some roles are guessed."""
    rng = random.Random(seed)
    while True:
        statements = [statement(person, rng) for person in PEOPLE]
        prompt, found = words(statements), solutions(statements)
        if len(found) == 1 and part_of(" ".join(prompt)) == "pretraining":
            yield prompt, solution(statements, found[0], styles, rng)


def solution(statements: Sequence[Statement], right: tuple[bool, ...], styles: Styles, rng: random.Random) -> list[str]:
    """Say who is a knight in one of the three styles, as tokens."""
    roles = rng.choice(WORLDS) if rng.random() < SLIP else right
    style = rng.choices(("right", "believing", "short"), styles)[0]
    if style == "believing":
        roles = tuple(holds(said, WORLDS[0]) for said in statements)
    return answer(roles[:-1] if style == "short" else roles)


def main(options: Options) -> None:
    write_start(options, ROLES, VOCABULARY, demonstrations)


if __name__ == "__main__":
    arguments.run(main, Options)
