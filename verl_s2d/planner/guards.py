"""Compare a teacher with the student before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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


def overlap_warnings(run_dir: Path, teachers: Iterable[str], least: float) -> list[str]:
    """Warn of teachers whose likeliest tokens the run's probe found too different from the student's.

    Args:
        least: smallest overlap of the two models' likeliest tokens on student rollouts.
    """
    try:
        pairs = json.loads((run_dir / "probe.json").read_text())["pairs"]
        found = {role: pairs[role]["student_rollouts"]["overlap_ratio"]["mean"] for role in teachers if role in pairs}
    except (OSError, ValueError, KeyError, TypeError):
        return ["the overlap of teachers and student is not known: `verl-s2d probe` measures it"]
    return [
        f"{role}: the probe found an overlap of {100 * overlap:.0f} % with the student, below {100 * least:.0f} %: 2b "
        "without 2a may not reach it"
        for role, overlap in found.items()
        if overlap < least
    ]
