"""Curves of the metrics that stages log, in the panels that the stages' tables of metrics name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from verl_s2d.metrics.metric_logs import value_of
from verl_s2d.metrics.metric_table import Metric
from verl_s2d.stages import stages

Metrics = Mapping[int, Mapping[str, Any]]
"""Step -> metrics logged at it."""

MOST_POINTS = 200
"""Points of a curve in report.json."""


def curves_of(kind: str, response_tokens: int | None, metrics: Metrics) -> dict[str, dict[str, dict[str, list]]]:
    """Collect the curves of a stage: panel -> series -> {"steps": [...], "values": [...]}. Values that are not finite
    and metrics that were not logged are absent.

    Args:
        kind: kind of the stage; an unknown one has no curves.
        response_tokens: length at which the stage cuts responses; None: no curve of truncated responses.
    """
    curves: dict[str, dict[str, dict[str, list]]] = {}
    for metric in _shown(kind):
        points = [
            (step, y)
            for step, data in metrics.items()
            if (y := _number(value_of(metric.key, data, response_tokens))) is not None
        ]
        finite = [(step, float(f"{y:.5g}")) for step, y in points if math.isfinite(y)]
        if finite:
            steps, values = thin([s for s, _ in finite], [y for _, y in finite])
            curves.setdefault(metric.panel.name, {})[metric.series] = {"steps": steps, "values": values}
    return curves


def _shown(kind: str) -> list[Metric]:
    stage = stages().get(kind)
    return [metric for metric in stage.metrics if metric.panel is not None] if stage else []


def thin(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """Reduce a curve to `most` points: its ends, and the lowest and highest of every stretch, so that spikes remain."""
    if len(steps) <= most:
        return list(steps), list(values)
    stretches = (most - 2) // 2
    kept = {0, len(steps) - 1}
    for number in range(stretches):
        stretch = range(number * len(steps) // stretches, (number + 1) * len(steps) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def moving_mean(values: Sequence[float]) -> list[float] | None:
    """Average every point with its neighbours, a tenth of the curve in all, fewer at its ends.

    Returns:
        None for curves of fewer than 20 points, which need no smoothing.
    """
    if len(values) < 20:
        return None
    reach, sums = len(values) // 20, [0.0, *accumulate(values)]
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[high] - sums[low]) / (high - low) for low, high in ends]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
