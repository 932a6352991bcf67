"""List the studies: which rows of which recipe are run for every seed, and which of them are compared."""

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
        contrasts: further pairs, (row, row subtracted from it).
        overrides: of the recipe's keys.
        piloted: `verl-s2d pilot` runs before the rows, and its pick is compared with them.
    """

    recipe: Path
    rows: Sequence[str]
    base: str
    overrides: Sequence[str] = ()
    piloted: bool = False
    contrasts: Sequence[tuple[str, str]] = ()

    def compared(self) -> Sequence[tuple[str, str]]:
        """List (row, row subtracted from it)."""
        return [*((row, self.base) for row in self.names() if row != self.base), *self.contrasts]

    def names(self) -> list[str]:
        """List the names of its rows."""
        return [row.split("=")[0] for row in self.rows]


STUDIES = {
    # The controls, the methods at one setting each, and the joint loss against the sequence.
    "quickstart": Study(
        RECIPES / "quickstart" / "quickstart.yaml",
        (
            *("cold-student", "direct-grpo", "bridge-only-1h", "half-split", "full-bridge", "joint-kdrl"),
            *("no-teacher", "self-teacher", "shuffled-teacher"),
            *("exopd-1.0=methods.py:exopd_one", "exopd", "exopd-1.5=methods.py:exopd_far"),
            *("delta", "tip", "iw-opd", "paced"),
        ),
        "full-bridge",
        contrasts=(
            ("full-bridge", "direct-grpo"),
            ("bridge-only-1h", "direct-grpo"),
            ("half-split", "direct-grpo"),
            ("half-split", "bridge-only-1h"),
            ("exopd", "exopd-1.0"),
            ("exopd-1.5", "exopd-1.0"),
            ("iw-opd", "exopd-1.0"),
        ),
    ),
    # The paper's predictions (section 3). P1: a raw teacher's bridge is no better than direct GRPO. P2: without 2a, or
    # without 2b, the bridge is worse; at equal updates, too? P3: in stage 3 new labels beat those of stage 1.
    # full-bridge and direct-grpo have equal labels and verifier calls; direct GRPO also goes on to half-split's calls,
    # and to full-bridge's tokens.
    "paper": Study(
        RECIPES / "quickstart" / "quickstart.yaml",
        (
            *("cold-student", "direct-grpo", "direct-grpo-same-calls", "direct-grpo-same-tokens", "raw-teacher"),
            *("full-bridge", "opd-only", "opd-only-same-updates", "warmup-only", "warmup-only-same-updates"),
            *("bridge-only-1h", "half-split", "replay-control"),
        ),
        "direct-grpo",
        (
            "matched.direct-grpo-same-calls={row: direct-grpo, to: half-split, by: verifier_calls}",
            "matched.direct-grpo-same-tokens={row: direct-grpo, to: full-bridge, by: sampled_tokens}",
            "matched.opd-only-same-updates={row: opd-only, to: full-bridge, by: updates}",
            "matched.warmup-only-same-updates={row: warmup-only, to: full-bridge, by: updates}",
        ),
        contrasts=(
            ("full-bridge", "direct-grpo-same-tokens"),
            ("half-split", "direct-grpo-same-calls"),
            ("half-split", "full-bridge"),
            ("full-bridge", "raw-teacher"),
            ("full-bridge", "opd-only"),
            ("full-bridge", "opd-only-same-updates"),
            ("full-bridge", "warmup-only"),
            ("full-bridge", "warmup-only-same-updates"),
            ("half-split", "replay-control"),
            ("half-split", "bridge-only-1h"),
        ),
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
