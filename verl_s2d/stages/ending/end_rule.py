"""Decide from what a stage measures, step by step, whether it ends: the rules of `until:`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from verl_s2d.recipe.until import DIVERGENCE, VALIDATION, Plateau, Until


def slope(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit a line by least squares.

        b = sum_i (x_i - mx) (y_i - my) / sum_i (x_i - mx)^2,   se(b)^2 = sum_i r_i^2 / ((n - 2) sum_i (x_i - mx)^2)

    mx and my are means, r_i the residuals.

    Args:
        values: at least three points (x, y) with distinct x.

    Returns:
        (b, se(b)).
    """
    # Counted from the first value: the mean of equal values is then exactly 0, and so is their slope.
    rises = [y - values[0][1] for _, y in values]
    middle_x, middle_y = fmean(x for x, _ in values), fmean(rises)
    centred = [(x - middle_x, y - middle_y) for (x, _), y in zip(values, rises, strict=True)]
    spread = math.fsum(x * x for x, _ in centred)
    b = math.fsum(x * y for x, y in centred) / spread
    residual = math.fsum((y - b * x) ** 2 for x, y in centred)
    return b, math.sqrt(residual / ((len(values) - 2) * spread))


class EndRule:
    """Applies the rules of a stage. Fed the same values it gives the same end, also across `state` and `restore`.

    Args:
        until: the rules; None for a stage that ends by its steps alone.

    Attributes:
        reason: why the stage ends, as in `travel 0.301 >= 0.3 at step 23`; None as long as it goes on.
    """

    def __init__(self, until: Until | None):
        self._until = until or Until()
        self._values: deque[tuple[int, float]] = deque(maxlen=plateau.window if (plateau := self._until.plateau) else 1)
        self._tokens = 0
        self.reason: str | None = None

    @property
    def active(self) -> bool:
        """Report whether any rule is set."""
        return bool(self.reads)

    @property
    def reads(self) -> frozenset[str]:
        """Return what the rules read: travel, sampled_tokens, validation, divergence."""
        return frozenset(self._until.reads)

    @property
    def last_value(self) -> int | None:
        """Return the step of the newest value of the plateau; None while there is none."""
        return self._values[-1][0] if self._values else None

    def add_step(
        self, step: int, *, tokens: int = 0, travel: float | None = None, divergence: float | None = None
    ) -> None:
        """Feed a finished training step.

        Args:
            step: its number, counted from 1.
            tokens: tokens it has sampled.
            travel, divergence: what it has measured; None for nothing. Values that are not finite do not count.
        """
        if self.reason is not None:
            return
        until, self._tokens = self._until, self._tokens + tokens
        if until.travel is not None and travel is not None and until.travel <= travel < math.inf:
            self._end(step, f"travel {travel:.4g} >= {until.travel:g}")
        if DIVERGENCE in self.reads:
            self._add_value(step, divergence)
        if until.sampled_tokens is not None and self._tokens >= until.sampled_tokens:
            self._end(step, f"{self._tokens:,} sampled tokens >= {until.sampled_tokens:,}")

    def add_validation(self, step: int, score: float | None) -> None:
        """Feed the validation score after a step; a step's second validation does not count."""
        if self.reason is None and VALIDATION in self.reads and step != self.last_value:
            self._add_value(step, score)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, JSON-able."""
        return {
            "reason": self.reason,
            "sampled_tokens": self._tokens,
            "values": [list(value) for value in self._values],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of an interrupted stage."""
        self.reason, self._tokens = state["reason"], state["sampled_tokens"]
        self._values.clear()
        self._values.extend((int(step), float(value)) for step, value in state["values"])

    def _add_value(self, step: int, value: float | None) -> None:
        plateau = self._until.plateau
        if plateau is None or value is None or not math.isfinite(value):
            return
        self._values.append((step, value))
        if len(self._values) == plateau.window and (text := _flat(plateau, list(self._values))):
            self._end(step, text)

    def _end(self, step: int, text: str) -> None:
        self.reason = self.reason or f"{text} at step {step}"


def _flat(plateau: Plateau, values: Sequence[tuple[int, float]]) -> str | None:
    """Describe a plateau; None while the values improve by more than the standard errors that count as noise."""
    rise, error = slope(values)
    gain, verb = (rise, "rises") if plateau.of == VALIDATION else (0.0 - rise, "falls")
    # With equality: of equal values slope and error are both 0.
    if gain > plateau.slope_se * error:
        return None
    bound = f"{plateau.slope_se:g} x its standard error {error:.3g}"
    return f"{plateau.of} {verb} by {gain:.3g} a step <= {bound} over {plateau.window} values"
