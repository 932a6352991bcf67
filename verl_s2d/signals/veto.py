"""Define Veto: the teacher times a power of the student, a target between the two (arXiv 2601.07155)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, FiniteFloat

from verl_s2d.signals.composed_teacher import SELF, SampledComposition


class Veto(SampledComposition):
    """The sampled signal from log q = log pi_T + c log pi_old - log Z, c in (0, 1).

    Here q is normalised over the vocabulary, and the exponents are not: they sum to 1 + c, and divided by it they would
    only scale plain OPD. The publication's normalisation and its schedule of c (there beta) were not to be had; here c
    is constant.

    A_t = beta (log pi_T(y_t) - (1 - c) log pi_old(y_t)). It rewards likely tokens more than OPD, and its fixed point is
    the teacher sharpened, pi proportional to pi_T^(1 / (1 - c)). A_t has a large negative mean, which
    `baseline: batch_mean` takes out.

    Attributes:
        self_weight: c.
    """

    type: str = "veto"
    exact_form: ClassVar[str | None] = None
    self_weight: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.3

    @property
    def weights(self) -> Mapping[str, float]:
        return {"teacher": 1.0, SELF: self.self_weight}
