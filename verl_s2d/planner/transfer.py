"""Fit what the bridge transfers: G = G_0 + m d, d the travel of the student from its start, up to about .30.

Source: arXiv 2609.32722: d = sqrt(mean k3 to the start), linear with R^2 .93 to .99; useful transfer ends at
a median of .30; over teachers, 1 - G_S is proportional to (1 - G_T)^.95.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verl_s2d.planner.fits import FitRefused, FittedLine, Resamples, fit_line, require_fit, require_varied

TEACHER_EXPONENT = 0.95
"""Exponent of the teacher's error in the student's (arXiv 2609.32722, leave-one-scale-out RMSE 1.66 points)."""


@dataclass(frozen=True)
class Travelled:
    """Validation results of a student on its way from the start under one teacher.

    Attributes:
        labels: number of labels that the teacher was trained on.
        travel: (K,) travel d of each point; the start, with d = 0, among them.
        right: (K, P) share of right samples of every validation problem.
    """

    labels: int
    travel: tuple[float, ...]
    right: np.ndarray


def fit_transfer(points: Travelled, limit: float, resamples: Resamples, teacher: str) -> FittedLine:
    """Fit the student's accuracy on its travel, from the points within `limit`.

    A negative slope is a result, not a fault: this teacher makes the student worse.

    Raises:
        FitRefused: one point within the limit, no success, no change, or points off the line.
    """
    travel = np.asarray(points.travel, dtype=np.float64)
    near = travel <= limit
    if len(set(travel[near])) < 2:
        raise FitRefused(
            f"the student under {teacher} has one point up to travel {limit:g}, and a line has two parameters: it had "
            f"travelled {travel[travel > 0].min(initial=np.inf):.2g} at the first evaluation"
        )
    right = points.right[near]
    require_varied(right, f"the student under {teacher}")
    means = resamples.means(right)
    line = fit_line(travel[near], means, np.full(near.sum(), resamples.half_a_problem))
    require_fit(line, f"the student's accuracy under {teacher}")
    return line
