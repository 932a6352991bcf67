"""Describe the metrics that a stage logs: one table for alarms, plots and ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Panel:
    """A plot over steps.

    Attributes:
        name: anchor in the report; stages that name the same panel share the plot.
        part: heading above the plot.
        unit: unit of the y axis.
        from_zero: the y axis contains zero.
    """

    name: str
    part: str
    title: str
    unit: str
    from_zero: bool = True


@dataclass(frozen=True)
class Metric:
    """A logged number.

    Attributes:
        key: name in the metrics file.
        panel: the plot that shows the metric; None for none.
        series: label of the curve in that plot.
        alarm: the alarm of `alarms:` that watches the metric; None for none.
        ledger: the ledger item that every step adds to; None for none.
        live: how the line of a running stage shows the newest value, such as "score {:.3f}"; empty: not at all.
    """

    key: str
    panel: Panel | None = None
    series: str = ""
    alarm: str | None = None
    ledger: str | None = None
    live: str = ""


def live_figures(metrics: Iterable[Metric], data: Mapping[str, Any]) -> list[str]:
    """Format the numbers of a step that the line of a running stage shows; those that it did not log are left out."""
    shown = [(metric, data.get(metric.key)) for metric in metrics if metric.live]
    return [m.live.format(value) for m, value in shown if isinstance(value, int | float) and math.isfinite(value)]
