"""Predict the accuracy of every way to spend N labels, and say which is best or that it is too close to call.

With the learning curves E_M(n) = exp(a - b log n) of law.py and the transfers of transfer.py:

    direct GRPO       1 - G = E_S(N)
    bridge from T     1 - G = s_T(N);  log s_T(n) = mean_j [log s_j + .95 b_T log n_j] - .95 b_T log n
    half split at f   1 - G = s_T((1 - f) N) * E_S(f N) / E_S(0)

s_j is the student's error at the limit of its travel under the teacher after n_j labels. Stage 3 is not piloted: it is
assumed to leave the share of the remaining error that direct GRPO leaves after as many labels. An interval holds the
chance of problems and samples, not that of another training seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from verl_s2d.planner.fits import FitRefused, Resamples, interval
from verl_s2d.planner.law import LearningCurve, Points, fit_curve, log_errors
from verl_s2d.planner.transfer import TEACHER_EXPONENT, Travelled, fit_transfer

LEVEL = 0.9
"""Probability of the intervals."""
STUDENT = "student"


@dataclass(frozen=True)
class Candidate:
    """A way to spend the labels.

    Attributes:
        name: shown, and the name of its row.
        teacher: role of the teacher; None for direct GRPO.
        share: share of the labels that Stage 3 gets.
        transfer: kind of the transfer that the bridge uses: `opd`, or a signal of its own.
    """

    name: str
    teacher: str | None = None
    share: float = 0.0
    transfer: str = "opd"

    @property
    def needs(self) -> frozenset[str]:
        """Return the roles of the models whose pilot the prediction rests on."""
        student = {STUDENT} if self.teacher is None or self.share else set()
        return frozenset(student | ({self.teacher} if self.teacher else set()))


@dataclass(frozen=True)
class Pilot:
    """Results of the pilot so far, all on the same P validation problems.

    Attributes:
        labels: the N labels of the full run.
        start: (P,) share of right samples of the student before training.
        curves: role -> its points after GRPO on fewer labels; the student's under `student`.
        transfers: (kind, role of the teacher) -> one entry for each of its checkpoints.
        travel: limit of the travel up to which transfer is linear.
    """

    labels: int
    start: np.ndarray
    curves: Mapping[str, Points]
    transfers: Mapping[tuple[str, str], Sequence[Travelled]] = field(default_factory=dict)
    travel: float = 0.3


@dataclass(frozen=True)
class Prediction:
    """The prediction for a candidate, or the reason why there is none.

    Attributes:
        accuracy: (1 + B,) predicted accuracies; None without a prediction.
        problem: why there is none.
        blocks: no other candidate can be recommended, because this one's accuracy is unknown.
    """

    candidate: Candidate
    accuracy: np.ndarray | None = None
    problem: str | None = None
    blocks: bool = False

    @property
    def point(self) -> float:
        return float(self.accuracy[0])

    @property
    def interval(self) -> tuple[float, float]:
        """Return the bounds of the 90 % interval."""
        return interval(self.accuracy, LEVEL)


def predict(pilot: Pilot, candidates: Sequence[Candidate], resamples: int = 2_000) -> list[Prediction]:
    """Predict the accuracy of each candidate after the full run."""
    drawn = _Fits(pilot, Resamples(len(pilot.start), resamples))
    predictions = []
    for candidate in candidates:
        try:
            predictions.append(Prediction(candidate, 1 - np.exp(drawn.log_error(candidate))))
        except FitRefused as refused:
            predictions.append(Prediction(candidate, problem=refused.reason, blocks=refused.blocks))
    return predictions


def fitted_curve(pilot: Pilot, role: str, *, points: int = 16, resamples: int = 2_000) -> dict[str, Any] | None:
    """Compute a model's fitted learning curve from its fewest labels to those of the full run; None if no fit holds.

    Returns:
        labels, accuracy, low and high: lists of `points` values, the bounds those of the 90 % interval.
    """
    labels = np.geomspace(min(pilot.curves[role].labels), pilot.labels, points)
    try:
        curve = fit_curve(pilot.curves[role], Resamples(len(pilot.start), resamples), role)
    except FitRefused:
        return None
    found = [1 - np.exp(curve.log_error(n)) for n in labels]
    low, high = zip(*(interval(accuracy, LEVEL) for accuracy in found), strict=True)
    middle = [float(accuracy[0]) for accuracy in found]
    return {"labels": labels.tolist(), "accuracy": middle, "low": list(low), "high": list(high)}


class _Fits:
    """Fits of a pilot; each is made once."""

    def __init__(self, pilot: Pilot, resamples: Resamples):
        self._pilot, self._resamples = pilot, resamples
        self._curves: dict[str, LearningCurve] = {}

    def log_error(self, candidate: Candidate) -> np.ndarray:
        """Return log(1 - G) of a candidate: (1 + B,).

        Raises:
            FitRefused: a fit that it rests on does not hold.
        """
        labels, share = self._pilot.labels, candidate.share
        if candidate.teacher is None:
            return self._curve(STUDENT).log_error(labels)
        bridged = self._bridged(candidate, (1 - share) * labels)
        if not share:
            return bridged
        left = self._curve(STUDENT).log_error(share * labels) - log_errors(self._pilot.start, self._resamples)[:, 0]
        return bridged + left

    def _curve(self, role: str) -> LearningCurve:
        if role not in self._curves:
            points = self._pilot.curves.get(role)
            if points is None:
                raise FitRefused(f"{role} has no pilot")
            self._curves[role] = fit_curve(points, self._resamples, role)
        return self._curves[role]

    def _bridged(self, candidate: Candidate, labels: float) -> np.ndarray:
        """Return the student's log error under a teacher trained on so many labels."""
        role, pilot, drawn = candidate.teacher, self._pilot, self._resamples
        made = pilot.transfers.get((candidate.transfer, role), ())
        if not made:
            raise FitRefused(f"nothing was transferred from {role}")
        ends = [fit_transfer(points, pilot.travel, drawn, role).at(pilot.travel) for points in made]
        logs = np.log(np.maximum(1 - np.stack(ends, axis=1), drawn.half_a_problem))
        steepness = TEACHER_EXPONENT * self._curve(role).exponent
        numbers = np.log([points.labels for points in made])
        # Every checkpoint gives the level; the teacher's own curve gives the slope.
        levels = logs + steepness[:, None] * numbers
        weights = 1 / np.maximum(levels[1:].var(axis=0), (drawn.half_a_problem / np.exp(logs[0])) ** 2)
        level = levels @ weights / weights.sum()
        return level - steepness * np.log(labels)


@dataclass(frozen=True)
class Recommendation:
    """The best candidate, its chance, and its rivals.

    Attributes:
        best: name of the candidate with the highest predicted accuracy; None if nothing is recommended.
        chances: name -> share of resamples in which the candidate is the best.
        rivals: candidates whose intervals overlap with that of the best: too close to call.
        unknown: candidates without a prediction that might be better.
    """

    best: str | None
    chances: Mapping[str, float]
    rivals: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Say it in a sentence."""
        if self.unknown:
            return f"nothing is recommended: no prediction for {', '.join(self.unknown)}"
        if self.best is None:
            return "nothing is recommended: no candidate can be predicted"
        chance = f"{self.best} (best in {100 * self.chances[self.best]:.0f} % of resamples)"
        if self.rivals:
            return f"too close to call: {chance}; the intervals of {', '.join(self.rivals)} overlap with its own"
        return f"recommended: {chance}"


def recommend(predictions: Sequence[Prediction]) -> Recommendation:
    """Compare predictions of the same pilot."""
    known = [p for p in predictions if p.accuracy is not None]
    if not known:
        return Recommendation(None, {}, unknown=tuple(p.candidate.name for p in predictions if p.blocks))
    drawn = np.stack([p.accuracy for p in known])
    wins = np.bincount(drawn[:, 1:].argmax(axis=0), minlength=len(known)) / (drawn.shape[1] - 1)
    chances = {p.candidate.name: float(share) for p, share in zip(known, wins, strict=True)}
    best = known[int(drawn[:, 0].argmax())]
    low = best.interval[0]
    rivals = tuple(p.candidate.name for p in known if p is not best and p.interval[1] >= low)
    unknown = tuple(p.candidate.name for p in predictions if p.blocks)
    return Recommendation(None if unknown else best.candidate.name, chances, rivals, unknown)
