"""Rows of the comparison: small functions over one builder. Two rows differ by the stage they drop and nothing else.

A row is the model it ends with, evaluated. Stages that rows share have the same digest and are therefore built once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from verl_s2d.recipe.row_checks import ROW_NAMES

if TYPE_CHECKING:
    from verl_s2d.stages.builder import Builder, Model


def cold_student(b: Builder) -> Model:
    """The student as it is."""
    return b.student()


def direct_grpo(b: Builder) -> Model:
    """All labels on the student."""
    return b.student_rl(b.student(), "all")


def full_bridge(b: Builder) -> Model:
    """Stages 1, 2a, 2b on all labels."""
    return b.bridge(b.teacher_rl(b.teacher(), "all"), "all")


def raw_teacher(b: Builder) -> Model:
    """The full bridge without Stage 1."""
    return b.bridge(b.teacher(), "all", of="raw")


def opd_only(b: Builder) -> Model:
    """The full bridge without Stage 2a."""
    return b.opd(b.student(), b.teacher_rl(b.teacher(), "all"), "all", of="cold")


def warmup_only(b: Builder) -> Model:
    """The full bridge without Stage 2b: off-policy distillation."""
    return b.warmed(b.teacher_rl(b.teacher(), "all"), "all")


def bridge_only_1h(b: Builder) -> Model:
    """Stages 1, 2a, 2b on the first half of the labels."""
    return b.bridge(b.teacher_rl(b.teacher(), "1h"), "1h")


def half_split(b: Builder) -> Model:
    """The whole workflow: the bridge on the first half of the labels, Stage 3 on the second."""
    return b.student_rl(bridge_only_1h(b), "2h")


def replay_control(b: Builder) -> Model:
    """The same Stage 3 on the labels that the bridge has used: what fresh labels are worth."""
    return b.student_rl(bridge_only_1h(b), "1h")


def held_out_upstream(b: Builder) -> Model:
    """The second half goes to the teacher, after its first, and reaches the student through the same bridge."""
    return b.bridge(b.teacher_rl(b.teacher_rl(b.teacher(), "1h"), "2h"), "1h", of="upstream")


def same_size_teacher(b: Builder) -> Model:
    """The full bridge from a teacher that is the student after Stage 1: what the teacher's size is worth."""
    return b.bridge(b.teacher_rl(b.student(), "all", of="same-size"), "all", of="same-size")


def sft_teacher(b: Builder) -> Model:
    """The full bridge from a teacher trained on demonstrations instead of by Stage 1."""
    return b.bridge(b.sft_teacher(), "all", of="sft")


ROWS: Mapping[str, Callable[[Builder], Model]] = {
    "cold-student": cold_student,
    "direct-grpo": direct_grpo,
    "bridge-only-1h": bridge_only_1h,
    "half-split": half_split,
    "full-bridge": full_bridge,
    "raw-teacher": raw_teacher,
    "opd-only": opd_only,
    "warmup-only": warmup_only,
    "replay-control": replay_control,
    "held-out-upstream": held_out_upstream,
    "same-size-teacher": same_size_teacher,
    "sft-teacher": sft_teacher,
}
assert tuple(ROWS) == ROW_NAMES
