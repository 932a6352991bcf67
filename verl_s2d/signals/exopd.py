"""Define ExOPD: extrapolate beyond the teacher along what RL taught it (G-OPD, arXiv 2602.12125)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from verl_s2d.signals.composed_teacher import ExactComposition, SampledComposition

# Published values are 1 to 1.5; factors above 4 are of no use in a composed teacher.
Lambda = Annotated[float, Field(ge=-3, le=4, alias="lambda")]


class ExOPD(SampledComposition):
    """The sampled signal from log q = lambda log pi_T + (1 - lambda) log pi_base - log Z.

    The role `base` is the student before training, or the teacher before RL to isolate what RL taught. lambda = 1 is
    plain OPD; the publication reports 1.25 as best and 1.5 as unstable.
    """

    type: str = "exopd"
    lam: Lambda = 1.25

    @property
    def weights(self) -> Mapping[str, float]:
        return {"teacher": self.lam, "base": 1 - self.lam}


class ExactExOPD(ExactComposition):
    """KL(pi_S || q) over the whole vocabulary: the expectation of ExOPD's sampled signal, without its variance."""

    type: str = "exopd_exact"
    lam: Lambda = 1.25

    @property
    def weights(self) -> Mapping[str, float]:
        return {"teacher": self.lam, "base": 1 - self.lam}
