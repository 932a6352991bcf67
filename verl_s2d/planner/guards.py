"""Compare a teacher with the student before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verl_s2d.stages.evaluate.statistics import mean_and_stderr


@dataclass(frozen=True)
class Gap:
    """The accuracy of a teacher minus that of the student, over the same problems.

    Attributes:
        least: standard errors by which the teacher has to be better.
    """

    teacher: str
    mean: float
    stderr: float
    least: float

    @property
    def weaker(self) -> bool:
        """Report whether the teacher is weaker than the student by more than chance."""
        return self.mean < -self.least * self.stderr

    @property
    def text(self) -> str:
        return f"{self.teacher} - student {100 * self.mean:+.1f} +- {100 * self.stderr:.1f} points"

    @property
    def warning(self) -> str | None:
        """Say what the gap means; None for a teacher that is better by more than chance."""
        if self.weaker:
            return (
                f"{self.text}: weaker than the student, whom stages 2a and 2b would make worse. It gets no pilot; "
                "the signal `delta`, without 2a, transfers what RL teaches it"
            )
        if self.mean <= self.least * self.stderr:
            return f"{self.text}: within {self.least:g} s.e., so nothing shows yet that it has something to teach"
        return None


def gap_to_student(teacher: str, right: np.ndarray, student: np.ndarray, least: float) -> Gap:
    """Measure the gap of a teacher to the student.

    Args:
        right, student: (P,) share of right samples of every problem.
        least: standard errors within which a gap counts as chance.
    """
    mean, stderr = mean_and_stderr(right - student)
    return Gap(teacher, mean, stderr, least)
