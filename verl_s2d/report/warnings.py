"""What a reader of the report has to be warned of, found in what a stage logged."""

from __future__ import annotations

from typing import Any

from verl_s2d.report.curves import Metrics, not_finite

Alarm = dict[str, Any]
"""{"step": where it began, or None; "text": what happened}"""


def alarms_of(kind: str, metrics: Metrics) -> list[Alarm]:
    """Updates left out for their gradient, and metrics that were not finite."""
    alarms = []
    for key in ("s2d/skipped_updates", "train/skipped_updates"):
        skipped = {step: data[key] for step, data in metrics.items() if data.get(key)}
        if skipped:
            count = round(sum(skipped.values()))
            updates = f"{count} update was" if count == 1 else f"{count} updates were"
            alarms.append({"step": min(skipped), "text": f"{updates} left out, because a gradient was not finite."})
    for key, steps in not_finite(kind, metrics).items():
        alarms.append({"step": steps[0], "text": f"{key} was not finite at {len(steps)} of {len(metrics)} steps."})
    return alarms
