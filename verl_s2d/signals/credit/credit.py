"""Define a credit: settings that change GRPO's update by the log-probs of a frozen teacher.

Nothing here imports torch, because plans read credits too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from verl_s2d.validation import Section

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts of a step, scored by the teacher and by the verifier.

    Attributes:
        old_log_probs, teacher_log_probs: (batch, response) of the sampled tokens under the student before the update
            and under the teacher; undefined outside the mask.
        mask: (batch, response), nonzero on sampled tokens.
        correct: (batch,) bool, rollouts that the verifier gave full marks.
        progress: share of the stage's steps done: 0 at the first step, 1 at the last.
    """

    old_log_probs: torch.Tensor
    teacher_log_probs: torch.Tensor
    mask: torch.Tensor
    correct: torch.Tensor
    progress: float

    @property
    def delta(self) -> torch.Tensor:
        """Compute log pi_T - log pi_old of the sampled tokens, (batch, response) float32, zero outside the mask."""
        difference = self.teacher_log_probs.float() - self.old_log_probs.float()
        return difference.where(self.mask.bool(), difference.new_zeros(()))

    def share(self, tokens: torch.Tensor) -> float:
        """Compute the share of response tokens that `tokens` marks, (batch, response) bool."""
        mask = self.mask.bool()
        return ((tokens & mask).sum() / mask.sum().clamp(min=1)).item()


class Credit(Section):
    """Settings of a credit; its fields are the keys below `credit:`. A credit overrides what it changes.

    Attributes:
        type: name of the credit, or file.py:Name.
    """

    type: str

    @property
    def scheduled(self) -> bool:
        """Report whether the update depends on the stage's number of steps."""
        return False

    def advantages(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> torch.Tensor:
        """Change GRPO's advantages, (batch, response), zero outside the mask; by default they stay as they are."""
        return advantages

    def anchor(self, rollouts: ScoredRollouts) -> torch.Tensor | None:
        """Compute log-probs that replace those of the old policy in the policy ratio, (batch, response), or None."""
        return None

    def distillation_weights(self, rollouts: ScoredRollouts) -> torch.Tensor | None:
        """Compute the coefficient of each token's distillation loss 0.5 (log pi_S - log pi_T)^2.

        Returns:
            (batch, response) float32, zero outside the mask, or None for no such loss. Either in every step.
        """
        return None

    def measured(self, advantages: torch.Tensor, rollouts: ScoredRollouts) -> dict[str, float]:
        """Return values to log, name -> value, given GRPO's advantages; the names are logged as s2d/<name>."""
        return {}
