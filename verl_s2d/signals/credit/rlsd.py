"""Define RLSD: tokens about which teacher and verifier agree get more of the advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from verl_s2d.signals.credit.credit import Clip, Credit, ScoredRollouts, Share

if TYPE_CHECKING:
    import torch


class RLSD(Credit):
    """The advantage A' = A ((1 - lambda) + lambda w), w = clip(exp(sign(A) Delta), 1 - clip, 1 + clip).

    Delta = log pi_T - log pi_old of the sampled token, held fixed. Formulas: objectives.token_credit.

    Attributes:
        lam: weight of the teacher's view; the key `lambda`.
        clip: largest distance of w from 1. The publication's values are 0.5 and 0.2.
    """

    type: str = "rlsd"
    lam: Share = Field(0.5, alias="lambda")
    clip: Clip = 0.2

    def advantages(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        from verl_s2d.objectives.token_credit import credit_weights, interpolated_advantages

        weights, _ = credit_weights(rollouts.delta, advantages, epsilon=self.clip)
        return interpolated_advantages(advantages, weights, self.lam)

    def measured(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> dict[str, float]:
        """Return the share of response tokens whose weight was clipped, as clipped_weights."""
        from verl_s2d.objectives.token_credit import credit_weights

        _, clipped = credit_weights(rollouts.delta, advantages, epsilon=self.clip)
        return {"clipped_weights": rollouts.share(clipped)}
