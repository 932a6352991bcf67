"""Fit the learning curve of GRPO: log(1 - G) = a - b log n, G the accuracy after n labels.

Source: arXiv 2605.12483 gives no law. A power law of the error is ours, in the form of the scaling laws of arXiv
2609.32722, fitted to the user's own models. The law has no ceiling. Problems that no model ever solves
hold G below 1: the curve then bends, which the chi-squared test refuses once it is visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verl_s2d.planner.fits import SIGN, FitRefused, FittedLine, Resamples, fit_line, require_fit, require_varied


@dataclass(frozen=True)
class Points:
    """Validation results of one model after several numbers of labels.

    Attributes:
        labels: (K,) numbers of labels n.
        right: (K, P) share of right samples of every validation problem.
    """

    labels: tuple[int, ...]
    right: np.ndarray


@dataclass(frozen=True)
class LearningCurve:
    """A fitted learning curve."""

    line: FittedLine

    @property
    def exponent(self) -> np.ndarray:
        """Return b: (1 + B,)."""
        return -self.line.slope

    def log_error(self, labels: float) -> np.ndarray:
        """Return log(1 - G) after n labels: (1 + B,)."""
        return self.line.at(np.log(labels))


def log_errors(right: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Compute log(1 - G): (K, P) -> (1 + B, K). An accuracy of 1 counts as half a problem short of it."""
    return np.log(np.maximum(1 - resamples.means(right), resamples.half_a_problem))


def fit_curve(points: Points, resamples: Resamples, model: str) -> LearningCurve:
    """Fit the law to a model's points.

    Raises:
        FitRefused: one number of labels, no success, no change, points off the law, or an accuracy that falls.
    """
    require_varied(points.right, model)
    labels = np.asarray(points.labels, dtype=np.float64)
    if len(set(points.labels)) < 2:
        raise FitRefused(f"{model} has one point, and the law has two parameters")
    logs = log_errors(points.right, resamples)
    line = fit_line(np.log(labels), logs, resamples.half_a_problem / np.exp(logs[0]))
    require_fit(line, f"the learning curve of {model}")
    curve = LearningCurve(line)
    if (curve.exponent[1:] > 0).mean() <= SIGN:
        raise FitRefused(f"the accuracy of {model} falls with labels", blocks=False)
    return curve
