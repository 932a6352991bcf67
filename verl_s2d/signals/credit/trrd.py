"""Define TRRD: the policy ratio is measured from between the old policy and the teacher (RLAD, arXiv 2602.22495)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, FiniteFloat, field_validator

from verl_s2d.signals.credit.credit import Credit, ScoredRollouts
from verl_s2d.validation import Refused

if TYPE_CHECKING:
    import torch


class TRRD(Credit):
    """PPO's ratio becomes exp(log pi - (alpha log pi_old + (1 - alpha) log pi_T)), with GRPO's advantage and clip.

    A token that the teacher finds likelier than the old policy does starts below a ratio of 1: the clip lets it rise
    further and fall less. Formula: objectives.token_credit.anchored_log_probs.

    Attributes:
        alpha: weight of the old policy; the publication's is 0.5.
    """

    type: str = "trrd"
    alpha: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.5

    @field_validator("alpha")
    @classmethod
    def _not_grpo(cls, alpha: float) -> float:
        if alpha == 1:
            raise Refused(
                "With a weight of 1 the anchor is the old policy's, so the teacher has no effect.",
                value=alpha,
                remedy="Choose a weight below 1, such as 0.5, or leave out `credit` for plain GRPO.",
            )
        return alpha

    def anchor(self, rollouts: ScoredRollouts) -> torch.Tensor:
        from verl_s2d.objectives.token_credit import anchored_log_probs

        return anchored_log_probs(rollouts.old_log_probs, rollouts.teacher_log_probs, rollouts.mask, self.alpha)
