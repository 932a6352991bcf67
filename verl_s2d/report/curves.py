"""Curves of what the stages logged over their steps, in the panels that their tables of metrics name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from verl_s2d.stages import stages
from verl_s2d.stages.shared.panels import TRUNCATED
from verl_s2d.workflow.metric_table import Metric

Metrics = Mapping[int, Mapping[str, Any]]
"""Step -> what was logged at it."""

MOST_POINTS = 200
"""Of a curve that is kept; see `thin`."""


def curves_of(kind: str, response_tokens: int | None, metrics: Metrics) -> dict[str, dict[str, dict[str, list]]]:
    """Collect panel -> series -> {"steps": [...], "values": [...]} of one stage, without what it did not log.

    Args:
        kind: of the stage; one that is none of this package's has no curves.
        response_tokens: the stage's limit to a response; without it nothing can be said of truncation.
    """
    curves: dict[str, dict[str, dict[str, list]]] = {}
    for metric in _shown(kind):
        points = [
            (step, y) for step, data in metrics.items() if (y := _value(metric.key, data, response_tokens)) is not None
        ]
        finite = [(step, float(f"{y:.5g}")) for step, y in points if math.isfinite(y)]
        if finite:
            steps, values = thin([s for s, _ in finite], [y for _, y in finite])
            curves.setdefault(metric.panel.name, {})[metric.series] = {"steps": steps, "values": values}
    return curves


def not_finite(kind: str, metrics: Metrics) -> dict[str, list[int]]:
    """Collect logged name -> steps at which it was NaN or infinite, of the metrics that this kind's panels show."""
    found = {}
    for key in {metric.key for metric in _shown(kind)}:
        steps = [step for step, data in metrics.items() if key in data and not _is_finite(data[key])]
        if steps:
            found[key] = steps
    return dict(sorted(found.items()))


def _shown(kind: str) -> list[Metric]:
    stage = stages().get(kind)
    return [metric for metric in stage.metrics if metric.panel is not None] if stage else []


def thin(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """At most so many points: of every stretch its lowest and its highest, so that no spike is lost; and the ends."""
    if len(steps) <= most:
        return list(steps), list(values)
    stretches = (most - 2) // 2
    kept = {0, len(steps) - 1}
    for number in range(stretches):
        stretch = range(number * len(steps) // stretches, (number + 1) * len(steps) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def _value(key: str, data: Mapping[str, Any], response_tokens: int | None) -> float | None:
    if key != TRUNCATED.name:
        return _number(data.get(key))
    # verl's clip ratio is the share of a batch that is as long as its longest, which may be short of the limit.
    share, longest = _number(data.get("response_length/clip_ratio")), _number(data.get("response_length/max"))
    if share is None or longest is None or response_tokens is None:
        return None
    return share if longest >= response_tokens else 0.0


def _is_finite(value: Any) -> bool:
    # verl's logger writes null for what JSON has no number for.
    return math.isfinite(value) if isinstance(value, int | float) else value is not None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
