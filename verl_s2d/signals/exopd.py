"""Define ExOPD: extrapolate beyond the teacher along what RL taught it (G-OPD, arXiv 2602.12125)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, FiniteFloat, model_validator

from verl_s2d.signals.composed_teacher import ExactComposition, SampledComposition
from verl_s2d.signals.signal import AddedKey
from verl_s2d.validation import Refused

if TYPE_CHECKING:
    import torch

# Published values are 1 to 1.5; factors above 4 are of no use in a composed teacher.
Lambda = Annotated[float, Field(ge=-3, le=4, alias="lambda")]


class ExOPD(SampledComposition):
    """The sampled signal from log q = lambda log pi_T + (1 - lambda) log pi_base - log Z.

    The role `base` is the student before training, or the teacher before RL to isolate what RL taught. lambda = 1 is
    plain OPD; the publication reports 1.25 as best and 1.5 as unstable.

    Attributes:
        tail_floor: tau: cap each token's lambda where the student would come to rest with less than tau on all other
            tokens, and extrapolate no token that the teacher finds less likely than the base does
            (objectives.opd.capped_extrapolation); null for one lambda everywhere.
    """

    type: str = "exopd"
    exact_form: ClassVar[str | None] = "exopd_exact"
    lam: Lambda = 1.25
    """Factor of the extrapolation: 1 is plain OPD."""
    tail_floor: Annotated[Annotated[FiniteFloat, Field(gt=0, lt=0.5)] | None, AddedKey] = None

    @model_validator(mode="after")
    def _extrapolates(self) -> ExOPD:
        if self.tail_floor is not None and self.lam <= 1:
            raise Refused(
                "Only a lambda above 1 extrapolates, so this has no effect.",
                key="tail_floor",
                value=self.tail_floor,
                remedy="Leave it out, or use a lambda above 1.",
            )
        return self

    @property
    def weights(self) -> Mapping[str, float]:
        return {"teacher": self.lam, "base": 1 - self.lam}

    def composed(self, log_probs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.tail_floor is None:
            return super().composed(log_probs)
        lam = self._capped(log_probs)
        return lam * log_probs["teacher"].float() + (1 - lam) * log_probs["base"].float()

    def measured(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> dict[str, float]:
        """Return the share of response tokens whose lambda is capped, as capped_tokens."""
        if self.tail_floor is None:
            return {}
        capped = (self._capped(frozen) < self.lam) & mask.bool()
        return {"capped_tokens": (capped.sum() / mask.bool().sum().clamp(min=1)).item()}

    def _capped(self, log_probs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from verl_s2d.objectives.opd import capped_extrapolation

        return capped_extrapolation(log_probs["teacher"], log_probs["base"], self.lam, self.tail_floor)


class ExactExOPD(ExactComposition):
    """KL(pi_S || q) over the whole vocabulary: the expectation of ExOPD's sampled signal, without its variance."""

    type: str = "exopd_exact"
    lam: Lambda = 1.25
    """Factor of the extrapolation: 1 is plain OPD."""

    @property
    def weights(self) -> Mapping[str, float]:
        return {"teacher": self.lam, "base": 1 - self.lam}
