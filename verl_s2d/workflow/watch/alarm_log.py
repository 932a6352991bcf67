"""Read a stage's metrics while they are written, record alarms, and report when one of them stops the stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_s2d.metrics.detectors import Detectors, Raised
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import metrics_file
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.watch import early_stop

ALARMS = "alarms.jsonl"


def recorded(directory: Path) -> list[dict[str, Any]]:
    """Read the alarms of a stage over all its attempts, in the order in which they were raised."""
    try:
        lines = (directory / ALARMS).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
            found.append({key: entry[key] for key in ("alarm", "step", "action", "text")} | entry)
        except (ValueError, KeyError, TypeError):  # cut short by a kill
            continue
    return found


class AlarmWatch:
    """The alarms of one attempt.

    Steps of earlier attempts, up to the checkpoint to resume from, are fed first: they fill the windows of the medians,
    and a kill may have come before an alarm was recorded.
    """

    def __init__(self, node: Node, directory: Path, attempt: int):
        self._directory, self._attempt = directory, attempt
        self._metrics, self._read = metrics_file(directory, attempt), 0
        limit = node.settings.get("response_tokens")
        self._detectors = Detectors(node.stage.metrics, node.operations.get("alarms", {}), limit)
        self._known = {(entry["alarm"], entry.get("metric"), entry["step"]) for entry in recorded(directory)}
        resumed = checkpoints.completed_step(directory / "checkpoints") or 0
        self._earlier = [(step, data) for step, data in read_metrics(directory).items() if step <= resumed]

    def look(self) -> list[Raised]:
        """Record and return the alarms raised by the steps logged since the last call."""
        logged, self._earlier = [*self._earlier, *self._new()], []
        raised = [alarm for step, data in logged for alarm in self._detectors.feed(step, data)]
        raised = [alarm for alarm in raised if (alarm.alarm, alarm.metric, alarm.step) not in self._known]
        self._known |= {(alarm.alarm, alarm.metric, alarm.step) for alarm in raised}
        for alarm in raised:
            if alarm.action == "stop" and not self.stopping:
                early_stop.record(self._directory, {"alarm": alarm.data()})
        if raised:
            with (self._directory / ALARMS).open("a") as stream:
                for alarm in raised:
                    stream.write(json.dumps({"attempt": self._attempt, **alarm.data()}, allow_nan=False) + "\n")
        return raised

    @property
    def stopping(self) -> bool:
        """Report whether a raised alarm stops the stage."""
        return early_stop.read(self._directory) is not None

    def _new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with self._metrics.open("rb") as stream:
                stream.seek(self._read)
                text = stream.read()
        except OSError:
            return
        # The last line may be incomplete.
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                yield int(entry["step"]), dict(entry["data"])
            except (ValueError, KeyError, TypeError):
                continue
