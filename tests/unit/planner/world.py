"""Draw results of a pilot from the planner's own laws."""

from __future__ import annotations

import numpy as np

from verl_s2d.planner.law import Points
from verl_s2d.planner.prediction import Pilot
from verl_s2d.planner.transfer import Travelled

SAMPLES = 8


class World:
    """Draws validation results on problems that are the same for all models.

    A problem has an ease u, uniform in [0, 1]; with accuracy G its chance of a right sample is u^((1 - G) / G), whose
    mean over problems is G exactly.
    """

    def __init__(self, seed: int, problems: int = 200):
        self._random = np.random.default_rng(seed)
        self._ease = self._random.uniform(size=problems)

    def right(self, accuracies) -> np.ndarray:
        """Sample answers: (K,) accuracies -> (K, problems) shares of right samples."""
        g = np.asarray(accuracies, dtype=float)[:, None]
        return self._random.binomial(SAMPLES, self._ease ** ((1 - g) / g)) / SAMPLES

    def points(self, labels, a: float, b: float) -> Points:
        """Draw the points of a learning curve log(1 - G) = a - b log n."""
        return Points(tuple(labels), self.right(1 - np.exp(a - b * np.log(labels))))

    def travelled(self, labels: int, start: float, end: float, travel=(0.0, 0.08, 0.16, 0.24, 0.3)) -> Travelled:
        """Draw a transfer from accuracy `start` to `end` at travel .30."""
        d = np.asarray(travel)
        return Travelled(labels, tuple(travel), self.right(start + (end - start) * d / 0.3))


def pilot(
    seed: int, total: int, labels, cold: float, student: tuple[float, float], teachers: dict, problems: int = 200
) -> Pilot:
    """Draw a pilot.

    Args:
        student: (a, b) of direct GRPO.
        teachers: role -> (a, b, c): its curve, and the factor c of the student's error s = c E_T^.95 at the end of the
            transfer.
    """
    world = World(seed, problems)
    curves = {"student": world.points(labels, *student)}
    curves |= {role: world.points(labels, a, b) for role, (a, b, _) in teachers.items()}
    transfers = {
        ("opd", role): [world.travelled(n, cold, 1 - c * np.exp(0.95 * (a - b * np.log(n)))) for n in labels]
        for role, (a, b, c) in teachers.items()
    }
    return Pilot(total, world.right([cold])[0], curves, transfers)
