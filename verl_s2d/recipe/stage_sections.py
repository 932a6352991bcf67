"""List the sections below `stages:` of a recipe."""

from __future__ import annotations

from verl_s2d.recipe.self_proposals import SelfProposals
from verl_s2d.recipe.stage_settings import (
    CoEvolution,
    OnPolicyDistillation,
    PassRateSampler,
    ReinforcementLearning,
    Rollouts,
    StudentReinforcementLearning,
    Warmup,
)
from verl_s2d.validation import Section


class Stages(Section):
    """Settings of the stages. Only those that the chosen rows need have to be given."""

    teacher_rl: ReinforcementLearning | None = None
    """Stage 1: GRPO on the teacher."""
    rollouts: Rollouts | None = None
    """The teacher samples what the warmup reads."""
    pass_rates: PassRateSampler = PassRateSampler()
    """Measures pass rates for `problem_weights`."""
    warmup: Warmup | None = None
    """Stage 2a: forward KL on cached teacher rollouts."""
    opd: OnPolicyDistillation | None = None
    """Stage 2b: on-policy distillation."""
    student_rl: StudentReinforcementLearning | None = None
    """Stage 3, and direct GRPO."""
    copd: CoEvolution | None = None
    """Rounds of the row copd."""
    g_zero: SelfProposals | None = None
    """Prompts that the student proposes, for the row g-zero."""
