"""Define the rows of other methods, the controls, and the teachers: mostly `full-bridge` with another signal in 2b.

They are built by name, `--rows full-bridge,exopd,no-teacher`, and are not among `--rows all`. A control drops what a
claim rests on. The rows of teachers show what a bridge could carry over, and how much of it the student kept.
Signals have the settings of their publications, where those are public; a row of yours sets others:

    def exopd_far(b):
        return bridge_with(b, {"type": "exopd", "lambda": 1.5}, of="exopd-1.5")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from verl_s2d.recipe.rows import Row, bridge, warmed
from verl_s2d.recipe.stage_settings import ProblemWeights

if TYPE_CHECKING:
    from verl_s2d.stages.builder import Builder, Model


def bridge_with(b: Builder, signal: Mapping[str, Any], *, of: str) -> Model:
    """Run Stages 1, 2a, 2b on all labels, with this signal in 2b in place of the recipe's.

    The role `base` is the teacher before Stage 1 and the role `student` the student before Stage 2a, whether or not
    the recipe has models of these roles.
    """
    teacher = b.teacher_rl(b.model("teacher"), "all")
    roles = {"base": b.model("teacher"), "student": b.model("student")}
    return b.opd(warmed(b, teacher, "all"), teacher, "all", of=of, signal=signal, frozen=roles)


def teacher(b: Builder) -> Model:
    """Evaluate the teacher as it is: what its labels start from."""
    return b.model("teacher")


def teacher_rl(b: Builder) -> Model:
    """Evaluate the teacher of `full-bridge`, after Stage 1 on all labels."""
    return b.teacher_rl(b.model("teacher"), "all")


def teacher_rl_1h(b: Builder) -> Model:
    """Evaluate the teacher of `half-split`, after Stage 1 on the first half of the labels."""
    return b.teacher_rl(b.model("teacher"), "1h")


def self_teacher(b: Builder) -> Model:
    """Distil the warmed student from itself: no teacher's knowledge enters Stage 2b."""
    student = warmed(b, b.teacher_rl(b.model("teacher"), "all"), "all")
    return b.opd(student, student, "all", of="self-teacher", signal={"type": "sampled"})


def joint_kdrl(b: Builder) -> Model:
    """Run half-split without Stage 2b, with its distillation in the loss of Stage 3: joint instead of sequential.

    Both spend the first half of the labels on the teacher and the second on the student, and both update the student
    equally often: Stage 3 has the steps of Stage 2b too.
    """
    teacher = b.teacher_rl(b.model("teacher"), "1h")
    credit, steps = {"type": "kdrl"}, b.steps("opd", "student_rl")
    return b.student_rl(warmed(b, teacher, "1h"), "2h", teacher=teacher, credit=credit, steps=steps, of="joint-kdrl")


def paced(b: Builder) -> Model:
    """Weigh problems by the student's pass rates in Stages 2a and 2b, measured anew before each of them (PACED).

    The order is the paper's: forward KL, then reverse KL. The share of each is the ratio of the stages' `steps`.
    """
    teacher, weights = b.teacher_rl(b.model("teacher"), "all"), ProblemWeights()
    rollouts = b.rollouts(teacher, "all")
    student = b.warmup(b.model("student"), teacher, rollouts, of="paced", problem_weights=weights)
    return b.opd(student, teacher, "all", of="paced", problem_weights=weights)


def mopd(b: Builder) -> Model:
    """Train each teacher on the labels of the data sources that it serves, and distil all into one student (MOPD).

    In Stage 2a the student reads as many rollouts of each teacher, on the prompts that it serves; in Stage 2b the
    teacher of a prompt is the one that serves its data source.
    """
    slices = {role: _of(b, role) for role in b.serving}
    teachers = {role: b.teacher_rl(b.model(role), name, of=role) for role, name in slices.items()}
    caches = {role: b.rollouts(teachers[role], name, of=role, of_many=len(slices)) for role, name in slices.items()}
    return b.opd(b.warmup(b.model("student"), teachers, caches, of="mopd"), teachers, "all", of="mopd")


def copd(b: Builder) -> Model:
    """Train a branch of the student for each group of data sources in rounds, and average the branches (CoPD).

    Branches have the names and sources of the models that serve some. A round is Stage 3 of each branch on its own
    labels, and Stage 2b on the prompts of the others, each of which is the teacher of its own sources. The paper's
    second phase goes on with RL beside the distillation; here the two alternate.
    """
    branches: dict[str, Model] = dict.fromkeys(b.serving, b.model("student"))
    for number in b.copd.numbers:
        trained = {
            role: b.student_rl(branch, _of(b, role), steps=b.copd.rl_steps, of=f"{role}-{number}")
            for role, branch in branches.items()
        }
        for role, branch in trained.items():
            peers = {peer: other for peer, other in trained.items() if peer != role}
            of, signal = f"{role}-{number}", {"type": "sampled"}
            branches[role] = b.opd(branch, peers, _of(b, *peers), steps=b.copd.opd_steps, of=of, signal=signal)
    return b.average([*branches.values()], of="copd")


def _of(b: Builder, *roles: str) -> str:
    """Name the slice of all problems whose data source one of these models serves."""
    return f"all@{','.join(source for role in roles for source in b.serving[role])}"


def bridge_unlabelled(b: Builder) -> Model:
    """Spend all labels on the teacher, and distil it on prompts without labels alone."""
    return bridge(b, b.teacher_rl(b.model("teacher"), "all"), "prompts")


def bridge_more_prompts(b: Builder) -> Model:
    """Run the full bridge on the prompts of the labelled problems and on those without labels."""
    return bridge(b, b.teacher_rl(b.model("teacher"), "all"), "all+prompts")


def g_zero(b: Builder) -> Model:
    """Distil the teacher on prompts that the student proposes itself, chosen by hint-delta, in rounds (G-Zero).

    All labels are spent on the teacher. The first round has Stages 2a and 2b, each further one 2b on prompts of the
    student that it starts from. The publication trains its student by DPO on the hints, without a teacher; here its
    proposals are the source of the prompts.
    """
    teacher, student, made = b.teacher_rl(b.model("teacher"), "all"), b.model("student"), []
    for number in b.g_zero.numbers:
        of = f"g-zero-{number}"
        made.append(b.proposals(student, earlier=made, of=str(number)))
        if number == 1:
            rollouts = b.rollouts(teacher, "prompts", of=of, pool=made[-1])
            student = b.warmup(student, teacher, rollouts, of=of)
        student = b.opd(student, teacher, "prompts", of=of, pool=made[-1])
    return student


_KEPT = {"type": "reverse_kl", "keep_tokens": 0.5}

SIGNALS: Mapping[str, Mapping[str, Any]] = {
    "no-teacher": {"type": "no_teacher"},
    "shuffled-teacher": {"type": "shuffled"},
    "exact": {"type": "reverse_kl"},
    "exopd": {"type": "exopd"},
    "delta": {"type": "delta", "baseline": "batch_mean"},
    "veto": {"type": "veto"},
    "iw-opd": {"type": "iw_opd"},
    "uni-opd": {"type": "uni_opd"},
    "tip": _KEPT,
    "tip-entropy": _KEPT | {"keep_by": "entropy"},
    "tip-divergence": _KEPT | {"keep_by": "divergence"},
    "tip-bottom": _KEPT | {"keep_by": "bottom_entropy"},
    "tip-q3": _KEPT | {"keep_by": "q3", "keep_tokens": 0.2},
}
"""Row -> signal of its stage 2b."""


def _row(name: str) -> Row:
    return lambda b: bridge_with(b, SIGNALS[name], of=name)


TEACHER_ROWS: Mapping[str, Row] = {"teacher": teacher, "teacher-rl": teacher_rl, "teacher-rl-1h": teacher_rl_1h}
"""Rows whose result is a teacher. Where a row of students has the same Stage 1, they cost an evaluation each."""
METHOD_ROWS: Mapping[str, Row] = {
    **TEACHER_ROWS,
    **{name: _row(name) for name in SIGNALS},
    "self-teacher": self_teacher,
    "joint-kdrl": joint_kdrl,
    "paced": paced,
}
PROMPT_ROWS: Mapping[str, Row] = {"bridge-unlabelled": bridge_unlabelled, "bridge-more-prompts": bridge_more_prompts}
"""Rows of recipes with prompts without labels, `data.prompts`."""
MADE_ROWS: Mapping[str, Row] = {"g-zero": g_zero}
"""Rows of recipes whose student makes prompts, `stages.g_zero`."""
ROUTED_ROWS: Mapping[str, Row] = {"mopd": mopd, "copd": copd}
"""Rows of recipes whose models serve data sources."""
