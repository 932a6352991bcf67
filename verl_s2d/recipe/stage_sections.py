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
    rollouts: Rollouts | None = None
    pass_rates: PassRateSampler = PassRateSampler()
    warmup: Warmup | None = None
    opd: OnPolicyDistillation | None = None
    student_rl: StudentReinforcementLearning | None = None
    copd: CoEvolution | None = None
    g_zero: SelfProposals | None = None
