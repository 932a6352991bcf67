"""Define RLRT: of a correct rollout, tokens that the student found without the teacher get more of the advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from verl_s2d.signals.credit.credit import ScoredRollouts
from verl_s2d.signals.credit.rlsd import RLSD

if TYPE_CHECKING:
    import torch


class RLRT(RLSD):
    """RLSD with the teacher's view reversed, on correct rollouts alone (arXiv 2605.10781).

    A' = A ((1 - lambda) + lambda w), w = clip((pi_old / pi_T)^sign(A), 1 - clip, 1 + clip); wrong rollouts keep A. The
    publication's clip and lambda are not public: these are RLSD's.
    """

    direction: ClassVar[int] = -1

    type: str = "rlrt"

    def advantages(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        return super().advantages(advantages, rollouts).where(rollouts.correct[:, None], advantages)

    def clipped(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        return super().clipped(advantages, rollouts) & rollouts.correct[:, None]
