"""Define RLRT: of a correct rollout, tokens that the student found without the teacher get more of the advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from verl_s2d.signals.credit.credit import Clip, Credit, ScoredRollouts, Share

if TYPE_CHECKING:
    import torch


class RLRT(Credit):
    """RLSD with the teacher's view reversed, on correct rollouts alone (arXiv 2605.10781).

    A' = A ((1 - lambda) + lambda w), w = clip((pi_old / pi_T)^sign(A), 1 - clip, 1 + clip); wrong rollouts keep A.
    Formulas: objectives.token_credit.

    Attributes:
        lam: weight of the reversed view; the key `lambda`.
        clip: largest distance of w from 1. The publication's clip and lambda are not public: these are RLSD's.
    """

    type: str = "rlrt"
    lam: Share = Field(0.5, alias="lambda")
    clip: Clip = 0.2

    def advantages(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        from verl_s2d.objectives.token_credit import credit_weights, interpolated_advantages

        weights, _ = credit_weights(rollouts.delta, advantages, epsilon=self.clip, direction=-1)
        return interpolated_advantages(advantages, weights, self.lam).where(rollouts.correct[:, None], advantages)

    def measured(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> dict[str, float]:
        """Return the share of response tokens whose weight was clipped, as clipped_weights."""
        from verl_s2d.objectives.token_credit import credit_weights

        _, clipped = credit_weights(rollouts.delta, advantages, epsilon=self.clip, direction=-1)
        return {"clipped_weights": rollouts.share(clipped & rollouts.correct[:, None])}
