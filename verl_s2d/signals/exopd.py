"""Define ExOPD: extrapolate beyond the teacher along what RL taught it (G-OPD, arXiv 2602.12125)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from verl_s2d.signals.exact import ReverseKL
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal import Ask

if TYPE_CHECKING:
    import torch

    from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits

# Published values are 1 to 1.5; factors above 4 are of no use in a composed teacher.
Lambda = Annotated[float, Field(ge=-3, le=4, alias="lambda")]


class ExOPD(Sampled):
    """The sampled signal from log q = lambda log pi_T + (1 - lambda) log pi_base - log Z.

    A_t = beta (lambda log pi_T + (1 - lambda) log pi_base - log pi_old); log Z does not depend on the sampled token and
    is left out. The role `base` is the student before training, or the teacher before RL to isolate what RL taught.
    lambda = 1 is plain OPD; the publication reports 1.25 as best and 1.5 as unstable.
    """

    asks: ClassVar[Mapping[str, Ask]] = {"teacher": Ask.SAMPLED, "base": Ask.SAMPLED}
    type: str = "exopd"
    lam: Lambda = 1.25

    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        composed = self.lam * frozen["teacher"].float() + (1 - self.lam) * frozen["base"].float()
        return super().advantages(student_log_probs, {"teacher": composed}, mask)


class ExactExOPD(ReverseKL):
    """KL(pi_S || q) over the whole vocabulary: the expectation of ExOPD's sampled signal, without its variance."""

    asks: ClassVar[Mapping[str, Ask]] = {"teacher": Ask.FULL, "base": Ask.FULL}
    type: str = "exopd_exact"
    lam: Lambda = 1.25

    def teacher(self, frozen: Mapping[str, GivenLogits | LinearLogits]) -> ComposedLogits:
        from verl_s2d.objectives.logits import ComposedLogits

        return ComposedLogits((frozen["teacher"], frozen["base"]), (self.lam, 1 - self.lam))
