"""List the studies: which rows of which recipe are run for every seed, and which row they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
POOL = 'data.prompts={script: pool.py, args: {prompts: 1000, seed: "{seed}"}, uses: [tasks.py]}'
TEACHERS = ("teacher_2", "teacher_3", "teacher_4", "teacher_weak")


@dataclass(frozen=True)
class Study:
    """Rows of a recipe.

    Attributes:
        base: row that the others are compared with.
        overrides: of the recipe's keys.
        piloted: `verl-s2d pilot` runs before the rows, and its pick is compared with them.
    """

    recipe: Path
    rows: Sequence[str]
    base: str
    overrides: Sequence[str] = ()
    piloted: bool = False


STUDIES = {
    # The controls, the methods at one setting each, and the joint loss against the sequence.
    "quickstart": Study(
        RECIPES / "quickstart" / "quickstart.yaml",
        (
            *("cold-student", "direct-grpo", "full-bridge", "half-split", "joint-kdrl", "no-teacher", "self-teacher"),
            *("shuffled-teacher", "exopd-1.0=methods.py:exopd_one", "exopd", "exopd-1.5=methods.py:exopd_far"),
            *("delta", "tip", "iw-opd", "paced"),
        ),
        "full-bridge",
    ),
    "pool": Study(
        RECIPES / "quickstart" / "quickstart.yaml",
        ("full-bridge", "bridge-unlabelled", "bridge-more-prompts"),
        "full-bridge",
        ("data.labels=128", POOL),
    ),
    "code": Study(
        RECIPES / "quickstart-code" / "quickstart-code.yaml",
        ("cold-student", "direct-grpo", "bridge-only-1h", "half-split"),
        "direct-grpo",
    ),
    "logic": Study(
        RECIPES / "quickstart-logic" / "quickstart-logic.yaml",
        ("cold-student", "direct-grpo", "bridge-only-1h", "half-split"),
        "direct-grpo",
    ),
    "planner": Study(
        RECIPES / "planner" / "planner.yaml",
        ("direct-grpo", *(f"{row}-{teacher}" for teacher in TEACHERS for row in ("full-bridge", "half-split"))),
        "direct-grpo",
        piloted=True,
    ),
}
