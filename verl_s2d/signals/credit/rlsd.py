"""Define RLSD: tokens about which teacher and verifier agree get more of the advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, FiniteFloat

from verl_s2d.signals.credit.credit import Credit, ScoredRollouts

if TYPE_CHECKING:
    import torch


class RLSD(Credit):
    """The advantage A' = A ((1 - lambda) + lambda w), w = clip(exp(sign(A) Delta), 1 - clip, 1 + clip).

    Delta = log pi_T - log pi_old of the sampled token, held fixed. Formulas: objectives.token_credit.

    Attributes:
        direction: -1 reverses the teacher's view, as RLRT does.
        lam: weight of the teacher's view; the key `lambda`.
        clip: largest distance of w from 1. The publication's values are 0.5 and 0.2.
    """

    direction: ClassVar[int] = 1

    type: str = "rlsd"
    lam: Annotated[FiniteFloat, Field(gt=0, le=1, alias="lambda")] = 0.5
    clip: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.2

    def advantages(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        from verl_s2d.objectives.token_credit import interpolated_advantages

        weights, _ = self._weights(advantages, rollouts)
        return interpolated_advantages(advantages, weights, self.lam)

    def clipped(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        """Report which tokens' weights were clipped, (batch, response) bool."""
        return self._weights(advantages, rollouts)[1]

    def measured(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> dict[str, float]:
        """Return the share of response tokens whose weight was clipped, as clipped_weights."""
        return {"clipped_weights": rollouts.share(self.clipped(advantages, rollouts))}

    def _weights(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> tuple[torch.Tensor, torch.Tensor]:
        from verl_s2d.objectives.token_credit import credit_weights

        return credit_weights(rollouts.delta, advantages, epsilon=self.clip, direction=self.direction)
