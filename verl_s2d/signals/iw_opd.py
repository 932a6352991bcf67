"""Define IW-OPD: weigh on-policy distillation's advantages by their position (arXiv 2606.22600)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, FiniteFloat

from verl_s2d.signals.sampled import Sampled

if TYPE_CHECKING:
    import torch


class IwOpd(Sampled):
    """The sampled signal, times a weight that falls from max_weight to 1 along a response.

    Each token's |log pi_T - log pi_old| takes the weight down by its share of the response's sum: after the student
    has left the teacher's path, the teacher's advice counts less. Formula: objectives.opd.position_weights. `whiten`
    and `baseline` come before the weight, `clip` after it.

    Attributes:
        max_weight: weight of a response's first token; the publication reports 1.5. 1 would be plain OPD.
    """

    exact_form: ClassVar[str | None] = None

    type: str = "iw_opd"
    max_weight: Annotated[FiniteFloat, Field(gt=1)] = 1.5

    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        return self._weights(student_log_probs, frozen, mask) * super().advantages(student_log_probs, frozen, mask)

    def measured(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> dict[str, float]:
        """Return mean, minimum and maximum of the weights of response tokens, as position_weight_mean, _min, _max."""
        weights = self._weights(student_log_probs, frozen, mask)[mask.bool()]
        if not len(weights):
            return {}
        return {f"position_weight_{name}": getattr(weights, name)().item() for name in ("mean", "min", "max")}

    def _weights(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        from verl_s2d.objectives.opd import position_weights

        return position_weights(frozen["teacher"], student_log_probs, mask, max_weight=self.max_weight)
