"""What a stage says of the metrics that it logs: one table, which alarms, plots and ledger read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One plot over steps.

    Attributes:
        name: its anchor in the report; stages that name the same panel share it.
        part: heading under which it stands.
        unit: of the y axis.
        from_zero: whether the y axis contains zero.
    """

    name: str
    part: str
    title: str
    unit: str
    from_zero: bool = True


@dataclass(frozen=True)
class Metric:
    """One logged number.

    Attributes:
        key: its name in the metrics file.
        panel: the plot that shows it; None for none.
        series: its label among the curves of that plot.
        alarm: the alarm of `alarms:` that watches it; None for none.
        ledger: the item of the ledger that it adds to at every step; None for none.
    """

    key: str
    panel: Panel | None = None
    series: str = ""
    alarm: str | None = None
    ledger: str | None = None
