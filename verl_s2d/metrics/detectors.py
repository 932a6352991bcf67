"""Detect training failures in logged metrics: feed steps in order, and each detector reports where a problem starts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from verl_s2d.metrics.metric_logs import value_of
from verl_s2d.metrics.metric_table import Metric
from verl_s2d.metrics.overlap_watch import OverlapWatch

Settings = Mapping[str, Mapping[str, Any]]
"""Name of an alarm -> its settings (recipe.alarm_settings)."""

_FALLING = ("entropy_collapse", "score_collapse")
_BOUNDS = {"truncation": "share", "unscored": "share", "travel": "limit"}
"""Alarm of values from a fixed bound on -> the key of that bound."""
_NOT_WATCHED = ("perf/", "timing", "actor/perf/", "train/mfu", "rollout_corr/", "training/")
"""Prefixes of metrics that do not depend on the update."""
_VALIDATION = "validation score"
_ZERO = 1e-9
_CAUSES = {
    "no_signal": "do the prompts ask for the form that the verifier reads?",
    "actor/grad_norm": "is the teacher the student itself, or every token left out?",
    "train/grad_norm": "is the teacher the student itself, or every token left out?",
    "truncation": "nearly all responses are cut off at their maximal length",
    "unscored": "groups left out because the verifier could not judge them; the stage's log has its reasons",
    "travel": "past the useful budget of distillation; go on with stage 3",
}
"""Likely causes, by the metric or else by the alarm."""


@dataclass(frozen=True)
class Raised:
    """The start of a problem.

    Attributes:
        step: step at which the detector was certain.
        since: first step of the problem; the last good checkpoint is older.
        value: metric at `step`; None when it is not finite.
        reference: median of the metric before, None for an alarm without one.
        limit: the bound that was crossed, None for `not_finite`.
    """

    alarm: str
    step: int
    since: int
    metric: str
    value: float | None
    reference: float | None
    limit: float | None
    action: str

    @property
    def text(self) -> str:
        """Describe it in one line."""
        what = self.alarm.replace("_", " ")
        if self.limit is None:
            return f"{what}: {self.metric} at step {self.step}"
        since = f" (since step {self.since})" if self.since != self.step else ""
        bounds = (
            f"its median was {self.reference:.4g}, the limit {self.limit:.4g}" if self.reference is not None else ""
        )
        value = f"{self.metric} was {self.value:.4g} at step {self.step}{since}"
        return f"{what}: {value}; {bounds or _CAUSES.get(self.metric) or _CAUSES[self.alarm]}"

    def data(self) -> dict[str, Any]:
        """Return the entry of alarms.jsonl."""
        return {**asdict(self), "text": self.text}


class Detectors:
    """All alarms of a stage that are not ignored.

    Args:
        metrics: the stage's metrics; each names the alarm that watches it.
        response_tokens: length at which the stage cuts responses; None: it has none.
    """

    def __init__(self, metrics: Sequence[Metric], settings: Settings, response_tokens: int | None):
        self._metrics, self._response_tokens = metrics, response_tokens
        self._settings = {name: s for name, s in settings.items() if s["action"] != "ignore"}
        self._series: dict[tuple[str, str], _Series | _Range] = {}
        self._not_finite: set[str] = set()
        watched = [metric.key for metric in metrics if metric.alarm == "overlap"]
        chosen = self._settings.pop("overlap", None)
        self._overlap = OverlapWatch(chosen, *watched) if chosen and watched else None

    def feed(self, step: int, data: Mapping[str, Any]) -> list[Raised]:
        """Return the problems that start with this step."""
        return [*self._finite(step, data), *self._moved(step, data), *self._apart(step, data)]

    def _apart(self, step: int, data: Mapping[str, Any]) -> Iterator[Raised]:
        found = self._overlap.feed(step, data) if self._overlap is not None else ()
        yield from (Raised("overlap", step, *problem) for problem in found)

    def _finite(self, step: int, data: Mapping[str, Any]) -> Iterator[Raised]:
        settings = self._settings.get("not_finite")
        if settings is None:
            return
        # verl's logger writes null for numbers that JSON cannot represent.
        bad = {k for k, v in data.items() if not k.startswith(_NOT_WATCHED) and not _is_finite(v)}
        bad |= {k for k, v in data.items() if k.endswith("/skipped_updates") and v}
        for key in sorted(bad - self._not_finite):
            yield Raised("not_finite", step, step, key, None, None, None, settings["action"])
        self._not_finite = bad

    def _moved(self, step: int, data: Mapping[str, Any]) -> Iterator[Raised]:
        for name, settings in self._settings.items():
            for metric, value in self._values(name, data):
                if not isinstance(value, int | float) or not math.isfinite(value):
                    continue
                series = self._series.setdefault((name, metric), _detector(name, settings))
                found = series.feed(step, value)
                if found is not None:
                    yield Raised(name, step, found[0], metric, value, found[1], found[2], settings["action"])

    def _values(self, name: str, data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        metrics = [metric.key for metric in self._metrics if metric.alarm == name]
        score = validation_score(data) if name == "score_collapse" else None
        if score is not None:
            yield _VALIDATION, score
        if name == "score_collapse" and (score is not None or (name, _VALIDATION) in self._series):
            return
        for metric in metrics:
            if (value := value_of(metric, data, self._response_tokens)) is not None:
                yield metric, value


def _detector(name: str, settings: Mapping[str, Any]) -> _Series | _Range:
    if name == "no_signal":
        return _Range(settings["patience"], most=_ZERO, from_start=True)
    if name in _BOUNDS:
        return _Range(settings["patience"], least=settings[_BOUNDS[name]])
    return _Series(settings, falling=name in _FALLING)


class _Range:
    """A metric whose absolute value is bad between fixed bounds, with `from_start` only until it first leaves them."""

    def __init__(self, patience: float, *, least: float = 0.0, most: float = math.inf, from_start: bool = False):
        self._patience, self._least, self._most, self._from_start = patience, least, most, from_start
        self._inside, self._since = 0, 0

    def feed(self, step: int, value: float) -> tuple[int, None, float] | None:
        """Return (since, None, limit) at the step at which a problem is certain, otherwise None."""
        if self._least <= abs(value) <= self._most:
            self._inside += 1
            self._since = step if self._inside == 1 else self._since
            return (self._since, None, self._least) if self._inside == self._patience else None
        self._inside = 0
        self._patience = math.inf if self._from_start else self._patience
        return None


class _Series:
    """A metric under an alarm.

    Values out of bounds do not enter the running median. A problem ends with the first value within bounds.
    """

    def __init__(self, settings: Mapping[str, Any], *, falling: bool):
        self._settings, self._falling = settings, falling
        self._window: deque[float] = deque(maxlen=settings["window"])
        self._highest = -math.inf
        self._outside, self._since = 0, 0

    def feed(self, step: int, value: float) -> tuple[int, float, float] | None:
        """Return (since, reference, limit) at the step at which a problem is certain, otherwise None."""
        window, s = self._window, self._settings
        if len(window) == s["window"]:
            middle = median(window)
            spread = 1.4826 * median(abs(x - middle) for x in window)
            self._highest = max(self._highest, middle)
            reference = self._highest if self._falling else middle
            share = 1 - s["ratio"] if self._falling else s["ratio"] - 1
            margin = max(s["spreads"] * spread, share * abs(reference))
            limit = reference - margin if self._falling else max(reference + margin, s["least"])
            if (value < limit) if self._falling else (value > limit):
                self._outside += 1
                self._since = step if self._outside == 1 else self._since
                return (self._since, reference, limit) if self._outside == s["patience"] else None
        self._outside = 0
        window.append(value)
        return None


def validation_score(data: Mapping[str, Any]) -> float | None:
    """Average the accuracy (or reward) of verl's validation at a step over data sources; None without a validation."""
    found = [v for k, v in data.items() if k.startswith("val-core/") and "/mean@" in k and _is_finite(v)]
    return fmean(found) if found else None


def _is_finite(value: Any) -> bool:
    if isinstance(value, int | float):
        return math.isfinite(value)
    return value is not None
