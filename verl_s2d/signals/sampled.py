"""Define the sampled-token signal: on-policy distillation as a dense advantage, the paper's stage 2b."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import FiniteFloat, field_validator, model_validator

from verl_s2d.signals.signal import AddedKey, AdvantageSignal
from verl_s2d.validation import Refused

if TYPE_CHECKING:
    import torch


class Sampled(AdvantageSignal):
    """The advantage A_t = beta (log pi_T(y_t|s_t) - log pi_old(y_t|s_t)); detached, per token, not group-normalised.

    Implicit reward of OPD (arXiv 2605.12483), implemented in objectives.opd.

    Attributes:
        beta: scale of the advantage.
        whiten: normalise to zero mean and unit variance over the batch's response tokens.
        baseline: `none`, or `batch_mean`: subtract the mean of A over the response tokens of the whole batch, of all
            ranks. The expected gradient changes by a share of the order of 1 / tokens.
        exact_form: type of the signal that is this one's expectation, or None.
    """

    exact_form: ClassVar[str | None] = "reverse_kl"

    type: str = "sampled"
    beta: FiniteFloat = 1.0
    whiten: bool = False
    baseline: Annotated[Literal["none", "batch_mean"], AddedKey] = "none"

    @field_validator("baseline", mode="before")
    @classmethod
    def _no_state_mean(cls, value: Any) -> Any:
        if value == "state_mean":
            exact = f", or the signal {cls.exact_form}: it has this advantage's gradient without its variance"
            raise Refused(
                "The mean of A in a state needs the whole vocabulary, and this signal gets the sampled tokens' "
                "log-probabilities only.",
                value=value,
                remedy=f"Use batch_mean{exact if cls.exact_form else ''}.",
            )
        return value

    @model_validator(mode="after")
    def _one_mean(self) -> Sampled:
        if self.whiten and self.baseline != "none":
            raise Refused(
                "Whitening subtracts the batch's mean already, so this has no effect.",
                key="baseline",
                value=self.baseline,
                remedy="Leave out one of whiten and baseline.",
            )
        return self

    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        from verl_s2d.objectives.opd import sampled_token_advantage

        return sampled_token_advantage(
            frozen["teacher"],
            student_log_probs,
            mask,
            beta=self.beta,
            whiten=self.whiten,
            centre=self.baseline == "batch_mean",
        )
