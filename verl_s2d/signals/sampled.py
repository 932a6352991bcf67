"""Define the sampled-token signal: on-policy distillation as a dense advantage, the paper's stage 2b."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import FiniteFloat

from verl_s2d.signals.signal import AdvantageSignal

if TYPE_CHECKING:
    import torch


class Sampled(AdvantageSignal):
    """The advantage A_t = beta (log pi_T(y_t|s_t) - log pi_old(y_t|s_t)); detached, per token, not group-normalised.

    Implicit reward of OPD (arXiv 2605.12483), implemented in objectives.opd.

    Attributes:
        beta: scale of the advantage.
        whiten: normalise to zero mean and unit variance over the batch's response tokens.
    """

    type: str = "sampled"
    beta: FiniteFloat = 1.0
    whiten: bool = False

    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        from verl_s2d.objectives.opd import sampled_token_advantage

        return sampled_token_advantage(frozen["teacher"], student_log_probs, mask, beta=self.beta, whiten=self.whiten)
