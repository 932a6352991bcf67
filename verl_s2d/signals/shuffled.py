"""Define a control of on-policy distillation: the teacher's advantages, on the wrong tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from verl_s2d.signals.sampled import Sampled

if TYPE_CHECKING:
    import torch


class Shuffled(Sampled):
    """The sampled signal with its advantages permuted over the response tokens of the whole batch.

    Their distribution is the teacher's, and which token gets which is chance, so a gain is not the teacher's advice.
    The permutation follows from the log-probs: the same batch gets the same one.
    """

    exact_form: ClassVar[str | None] = None

    type: str = "shuffled"

    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        import torch

        from verl_s2d.objectives.opd import batch_seed

        advantages, chosen = super().advantages(student_log_probs, frozen, mask), mask.bool()
        values = advantages[chosen]
        seed = batch_seed(student_log_probs, mask)
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).to(values.device)
        shuffled = torch.zeros_like(advantages)
        shuffled[chosen] = values[order]
        return shuffled
