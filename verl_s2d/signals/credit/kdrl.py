"""Define KDRL: GRPO and distillation in one loss, with a distillation coefficient that falls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, FiniteFloat

from verl_s2d.signals.credit.credit import Credit, ScoredRollouts

if TYPE_CHECKING:
    import torch


class KDRL(Credit):
    """The joint loss GRPO + beta_t 0.5 (log pi_S - log pi_T)^2 of the sampled token, with gradient through pi_S.

    This k2 estimate has the gradient of KL(pi_S || pi_T) on the student's own samples. beta falls linearly over the
    stage's steps. The loss is computed by signals.in_verl.joint_loss.

    Attributes:
        beta: coefficient in the first step.
        beta_end: coefficient in the last step. The publication goes from 0.2 to 0.002.
        rollouts: `all`, or `wrong`: correct rollouts are not distilled, the publication's masked variant.
    """

    type: str = "kdrl"
    beta: Annotated[FiniteFloat, Field(gt=0)] = 0.2
    beta_end: Annotated[FiniteFloat, Field(ge=0)] = 0.002
    rollouts: Literal["all", "wrong"] = "all"

    @property
    def scheduled(self) -> bool:
        return self.beta != self.beta_end

    def distillation_weights(self, rollouts: ScoredRollouts) -> torch.Tensor:
        weights = self._beta(rollouts) * rollouts.mask.bool().float()
        return weights * ~rollouts.correct[:, None] if self.rollouts == "wrong" else weights

    def measured(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> dict[str, float]:
        """Return the step's coefficient, as beta."""
        return {"beta": self._beta(rollouts)}

    def _beta(self, rollouts: ScoredRollouts) -> float:
        from verl_s2d.objectives.token_credit import linear_schedule

        return linear_schedule(self.beta, self.beta_end, rollouts.progress)
