"""Make a teacher candidate of the planner's recipe: the quickstart's pre-training with another depth and length.

python candidates.py --out DIR role=teacher_2|teacher_3|teacher_4|teacher_weak [seed=0]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))

from pretrain import ROLES, main
from tiny_start import Options, Role

from verl_s2d import arguments

GOOD, STUDENTS = (0.34, 0.33, 0.33), (0.15, 0.45, 0.40)
"""Shares of demonstrations that are right, ignore the minus signs, stop too early, as in the quickstart."""

ROLES |= {
    "teacher_2": Role(layers=2, steps=1500, styles=GOOD),
    "teacher_3": Role(layers=3, steps=1500, styles=GOOD),
    "teacher_4": Role(layers=4, steps=1500, styles=GOOD),
    "teacher_weak": Role(layers=2, steps=300, styles=STUDENTS),
}

if __name__ == "__main__":
    arguments.run(main, Options)
