"""Define the exact signals: a full-vocabulary divergence from the teacher's distribution as the loss."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from verl_s2d.signals.signal import LossSignal


class ForwardKL(LossSignal):
    """KL(pi_T || pi_S): mass-covering; the signal of the paper's stage 2a."""

    type: str = "forward_kl"
    objective: ClassVar[str] = "forward_kl"


class ReverseKL(LossSignal):
    """KL(pi_S || pi_T): the expectation of the sampled signal, without its variance."""

    type: str = "reverse_kl"
    objective: ClassVar[str] = "reverse_kl"


class JSD(LossSignal):
    """beta KL(pi_T || m) + (1 - beta) KL(pi_S || m), m = beta pi_T + (1 - beta) pi_S (GKD, arXiv 2306.13649, eq. 1).

    Attributes:
        beta: weight of the teacher's side.
    """

    type: str = "jsd"
    objective: ClassVar[str] = "jsd"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def divergence_options(self) -> dict[str, Any]:
        return super().divergence_options() | {"beta": self.beta}
