"""Define the placebo of on-policy distillation: unlikely tokens are discouraged, and no teacher is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, FiniteFloat

from verl_s2d.signals.signal import AdvantageSignal, Ask

if TYPE_CHECKING:
    import torch


class NoTeacher(AdvantageSignal):
    """The advantage of OPSA (arXiv 2608.31046), on the fraction `tokens` of least likely sampled tokens.

    A_t = -1/2 - (H_t - H_min) / (2 (H_max - H_min)) with the student's entropy H_t, and 0 on all other tokens. Tokens
    and range are those of the whole batch, of all ranks; the publication's scope is not public.

    Attributes:
        tokens: fraction of the batch's response tokens to discourage, rounded down.
    """

    asks: ClassVar[Mapping[str, Ask]] = {}
    reads: ClassVar[tuple[str, ...]] = ("entropy",)

    type: str = "no_teacher"
    tokens: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.2

    def advantages(
        self,
        student_log_probs: torch.Tensor,
        frozen: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
        *,
        fields: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        from verl_s2d.objectives.opd import discouraged_tokens

        return discouraged_tokens(student_log_probs, fields["entropy"], mask, share=self.tokens)
