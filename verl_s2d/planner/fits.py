"""Fit straight lines through validation accuracies; intervals come from a bootstrap over problems.

Arrays over resamples have the sample itself in row 0 and resamples of the problems in the other rows: (1 + B, ...). The
same resamples serve all models, so that differences between models are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from verl_s2d.stages.evaluate.statistics import resample_counts

MISFIT = 0.001
"""Smallest p-value of the chi-squared test at which a line counts as holding. A pilot of a few models makes some 20
fits, and all that hold are to pass."""
SIGN = 0.05
"""Largest share of resamples with the expected sign at which a slope counts as having the wrong one."""


class FitRefused(Exception):
    """A fit that does not hold.

    Args:
        reason: one sentence.
        blocks: the candidate's accuracy stays unknown, so that no other one can be recommended before it; False: it is
            known to be no better than measured.
    """

    def __init__(self, reason: str, *, blocks: bool = True):
        super().__init__(reason)
        self.reason, self.blocks = reason, blocks


class Resamples:
    """Resamples of the validation problems.

    Args:
        problems: number of problems P.
        count: number of resamples B.
    """

    def __init__(self, problems: int, count: int = 2_000, seed: int = 0):
        self.problems = problems
        self._weights = np.vstack([np.ones(problems), resample_counts(problems, count, seed)]) / problems

    def means(self, right: np.ndarray) -> np.ndarray:
        """Average over problems: (K, P) shares of right samples -> (1 + B, K) accuracies."""
        return self._weights @ np.atleast_2d(right).T

    @property
    def half_a_problem(self) -> float:
        """Return the smallest error and standard error of an accuracy that P problems can show: 1 / (2 P)."""
        return 0.5 / self.problems


@dataclass(frozen=True)
class FittedLine:
    """A fitted line y = intercept + slope x.

    Attributes:
        intercept, slope: (1 + B,).
        p_value: of the chi-squared test that the points lie on a line; 1 for two points.
    """

    intercept: np.ndarray
    slope: np.ndarray
    p_value: float

    def at(self, x: float) -> np.ndarray:
        """Return the line's value at x for every resample: (1 + B,)."""
        return self.intercept + self.slope * x


def fit_line(x: np.ndarray, y: np.ndarray, least_se: np.ndarray) -> FittedLine:
    """Fit a line by least squares with weights 1 / SE^2, for every resample at once.

    chi^2 = r' C_r^+ r for the residuals r of the sample, where C_r is their covariance over resamples: points share
    their problems, so their errors are correlated. It has K - 2 degrees of freedom.

    Args:
        x: (K,), at least two different ones.
        y: (1 + B, K).
        least_se: (K,) lower bounds of the standard errors: a point that no resample moves is not exact.
    """
    covariance = np.cov(y[1:].T)
    variances = np.maximum(np.diag(covariance), least_se**2)
    design = np.stack([np.ones_like(x), x], axis=1)
    weighted = design.T / variances
    solve = np.linalg.solve(weighted @ design, weighted)
    intercept, slope = solve @ y.T
    residual_of = np.eye(len(x)) - design @ solve
    residuals = residual_of @ y[0]
    spread = residual_of @ (covariance + np.diag(variances - np.diag(covariance))) @ residual_of.T
    freedom = len(x) - 2
    statistic = residuals @ np.linalg.pinv(spread, rcond=1e-9, hermitian=True) @ residuals
    return FittedLine(intercept, slope, float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0)


def require_varied(right: np.ndarray, what: str) -> None:
    """Raise FitRefused if a model's accuracy says nothing.

    Args:
        right: (K, P) shares of right samples at K points.
        what: the model, for the message.
    """
    if not right.any():
        raise FitRefused(f"{what} never solves a problem, so its rewards have no gradient", blocks=False)
    if len(right) > 1 and (right == right[0]).all():
        raise FitRefused(f"{what} answers every problem as often right at all points: nothing changes it")


def require_fit(line: FittedLine, what: str) -> None:
    """Raise FitRefused if the points do not lie on a line."""
    if line.p_value < MISFIT:
        raise FitRefused(f"{what} does not follow the law: chi-squared test p = {line.p_value:.1g}")


def interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Return the percentile interval of (1 + B,) values, two-sided."""
    tail = (1 - level) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return float(low), float(high)
