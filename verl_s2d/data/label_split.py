"""Divide the labels between the stages before the last one, `1h`, and stage 3, `2h`."""

from __future__ import annotations

import math

from verl_s2d.errors import UserError

HALF = 0.5
"""Share of `1h` in the labels, unless a recipe has another."""


def first_part(count: int, split: float) -> int:
    """Count the labels of `1h`: the share `split` of `count`, rounded down."""
    # A product that is a whole number but for the rounding of floats, as 0.29 * 100, counts as that number.
    return math.floor(count * split + 1e-9)


def require_parts(count: int, split: float) -> None:
    """Raise UserError if a share of `count` labels leaves a part empty."""
    first = first_part(count, split)
    if not 0 < first < count:
        raise UserError(
            f"Of {count} labels, {first} would be in 1h, and {count - first} in 2h.",
            key="data.split",
            value=split,
            remedy="Choose a share that leaves a label for each part, or use more labels.",
        )
