"""Detect that student and teacher drift apart, or agree ever more while responses lose the form of an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

Problem = tuple[int, str, float, float, float, str]
"""since, metric, its median, the median at the start, limit, action; as in detectors.Raised."""


class OverlapWatch:
    """Compares medians over the last steps with those over the first ones.

    Args:
        settings: those of recipe.alarm_settings.OverlapLoss.
        overlap, parse_rate: names of the metrics.
    """

    def __init__(self, settings: Mapping[str, Any], overlap: str, parse_rate: str):
        self._settings, self._overlap, self._parse_rate = settings, overlap, parse_rate
        self._windows = {name: deque(maxlen=settings["window"]) for name in (overlap, parse_rate)}
        self._start: dict[str, float] = {}
        self._known: set[str] = set()

    def feed(self, step: int, data: Mapping[str, Any]) -> list[Problem]:
        """Return the problems that start with this step's metrics."""
        for name, window in self._windows.items():
            window.extend([data[name]] if isinstance(data.get(name), int | float) else ())
            if len(window) == window.maxlen:
                self._start.setdefault(name, median(window))
        since = max(1, step - self._settings["window"] + 1)
        found = {bounds[0]: (since, *bounds, self._settings["action"]) for bounds in self._outside()}
        new = [problem for name, problem in found.items() if name not in self._known]
        self._known = set(found)
        return new

    def _outside(self) -> Iterator[tuple[str, float, float, float]]:
        start, now = self._start, {name: median(self._windows[name]) for name in self._start}
        if self._overlap not in start:
            return
        lowest = self._settings["ratio"] * start[self._overlap]
        if now[self._overlap] < lowest:
            yield self._overlap, now[self._overlap], start[self._overlap], lowest
        if self._parse_rate in start and now[self._overlap] > start[self._overlap]:
            lowest = start[self._parse_rate] - self._settings["parse_drop"]
            if now[self._parse_rate] < lowest:
                yield self._parse_rate, now[self._parse_rate], start[self._parse_rate], lowest
