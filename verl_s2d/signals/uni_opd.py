"""Define Uni-OPD's margin: correct the teacher's advantages where they contradict the verifier (arXiv 2605.03677)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, FiniteFloat

from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal import GROUPS, SCORES, Positive

if TYPE_CHECKING:
    import torch


class UniOpd(Sampled):
    """The sampled signal; where a problem's correct rollouts lead by less than a margin, they are raised to it.

    It reads labels: the verifier scores every rollout of stage 2b. The gap is that of mean advantages, and half of what
    is missing is added to every token of the correct rollouts and subtracted from the wrong ones. Formula:
    objectives.opd.raised_margin. `whiten` and `baseline` come before it, `clip` after it.

    Attributes:
        margin: smallest gap; the publication's is 0.4.
        balance: give no advantage to rollouts of the more frequent sort, chosen at random, until the batch has as many
            correct as wrong ones that count. They still count as tokens in the mean of verl's loss.
        clip: as in every advantage; the publication's is 10.
    """

    exact_form: ClassVar[str | None] = None
    reads: ClassVar[tuple[str, ...]] = (SCORES, GROUPS)

    type: str = "uni_opd"
    margin: Annotated[FiniteFloat, Field(gt=0)] = 0.4
    balance: bool = False
    clip: Positive | None = 10.0

    def advantages(
        self,
        student_log_probs: torch.Tensor,
        frozen: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
        *,
        fields: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        from verl_s2d.objectives.opd import balanced_rollouts, batch_seed

        advantages, _ = self._raised(student_log_probs, frozen, mask, fields)
        if self.balance:
            keep = balanced_rollouts(mask, _correct(fields), seed=batch_seed(student_log_probs, mask))
            advantages = advantages * keep[:, None]
        return advantages

    def measured(
        self,
        student_log_probs: torch.Tensor,
        frozen: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
        *,
        fields: Mapping[str, torch.Tensor],
    ) -> dict[str, float]:
        """Return the share of rollouts that are shifted to reach the margin, as raised_rollouts."""
        _, shift = self._raised(student_log_probs, frozen, mask, fields)
        return {"raised_rollouts": ((shift > 0).sum() / mask.bool().any(-1).sum().clamp(min=1)).item()}

    def _raised(
        self,
        student_log_probs: torch.Tensor,
        frozen: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from verl_s2d.objectives.opd import raised_margin

        advantages = super().advantages(student_log_probs, frozen, mask)
        return raised_margin(advantages, mask, _correct(fields), fields[GROUPS], margin=self.margin)


def _correct(fields: Mapping[str, torch.Tensor]) -> torch.Tensor:
    from verl_s2d.signals.in_verl.verdicts import correct_rollouts

    return correct_rollouts(fields[SCORES])
