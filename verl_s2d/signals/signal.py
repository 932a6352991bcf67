"""Define a signal: settings that turn answers of frozen models into an advantage or a loss.

Nothing here imports torch, because plans read signals too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from verl_s2d.validation import Refused, Section

if TYPE_CHECKING:
    import torch

    from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits

Positive = Annotated[FiniteFloat, Field(gt=0)]
Selector = Literal["tip", "entropy", "q3", "divergence", "bottom_entropy"]
SCORES, GROUPS = "rm_scores", "uid"
"""verl's fields of the verifier's scores and of the prompt's id."""
_CLIPPED = ("tip", "q3")
"""Selectors whose score has a divergence beside the entropy; alone, clipping it would only make ties."""


class AddedKey:
    """Marks, in an annotation, a key that came after stages were built with the others of its signal.

    It is written only with another value than its default, so digests and commands without it stay as they are.
    """


class Ask(Enum):
    """Answers that a frozen model can give about a token."""

    SAMPLED = "the log-probability of the sampled token"
    TOP_K = "the log-probabilities of its k most likely tokens"
    FULL = "its logits of the whole vocabulary"


class Signal(Section):
    """Settings of a signal; its fields are the keys below `signal:`. Derive from AdvantageSignal or LossSignal.

    Attributes:
        asks: role of a frozen model -> the answer it has to give; a loss asks one at least. The first role uses verl's
            reference engine. Read it from an instance: a signal whose keys name the roles has a property of this name.
        type: name of the signal, or file.py:Name.
    """

    asks: ClassVar[Mapping[str, Ask]]
    type: str

    def models(self, stored: tuple[Ask, ...] = ()) -> tuple[str, ...]:
        """List the roles whose models have to be there, where the training data hold the answers `stored`."""
        return tuple(role for role, ask in self.asks.items() if ask not in stored)

    @model_serializer(mode="wrap")
    def _without_defaults_of_added_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        silent = {
            field.alias or name
            for name, field in type(self).model_fields.items()
            if AddedKey in field.metadata and getattr(self, name) == field.default
        }
        return {name: value for name, value in handler(self).items() if name not in silent}


class AdvantageSignal(Signal, ABC):
    """A signal on sampled tokens: an advantage for verl's policy loss, and therefore only for the student's rollouts.

    Attributes:
        reads: further fields of verl's batch, by verl's names (`entropy`, `rollout_log_probs`). A signal that names
            some gets them as `fields` of `advantages` and `measured`: name -> (batch, response). With `rm_scores` the
            verifier runs, and the stage reads labels; `uid` is (batch,), the same number for rollouts of a prompt.
        clip: largest magnitude of an advantage; null for no limit.
        gate: [low, high], bounds of pi_old / mu, of the engine that trains and the one that samples: within them the
            advantage is multiplied by the ratio, elsewhere the token is left out (objectives.opd.mismatch_gate); null
            for neither. MiMo-V2-Flash's numbers are not public; [0.5, 5] is like IcePop's.
    """

    asks: ClassVar[Mapping[str, Ask]] = {"teacher": Ask.SAMPLED}
    reads: ClassVar[tuple[str, ...]] = ()
    clip: Positive | None = None
    gate: Annotated[Annotated[list[Positive], Field(min_length=2, max_length=2)] | None, AddedKey] = None

    @field_validator("gate")
    @classmethod
    def _around_one(cls, gate: list[float] | None) -> list[float] | None:
        if gate is not None and not gate[0] < 1 < gate[1]:
            raise Refused(
                "Engines that agree have a ratio of 1, which this leaves out.",
                value=gate,
                remedy="Write [low, high] with low below 1 and high above, such as [0.5, 5].",
            )
        return gate

    @abstractmethod
    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """Compute the advantage of each sampled token, before `clip`.

        Args:
            student_log_probs: (batch, response) log-probs of the sampled tokens under the policy before the update.
            frozen: role -> (batch, response) log-probs of the same tokens under that model.
            mask: (batch, response), nonzero on sampled tokens; log-probs at other positions are undefined.

        Returns:
            (batch, response) float32, detached, zero outside the mask.
        """

    def measured(
        self,
        student_log_probs: torch.Tensor,
        frozen: Mapping[str, torch.Tensor],
        mask: torch.Tensor,
        *,
        fields: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """Return values to log for a batch, name -> value; the names are logged as s2d/<name>.

        Args: as for `advantages`. fields: what the signal `reads`; None for a signal that reads none.
        """
        return {}


class LossSignal(Signal):
    """A signal over the whole vocabulary: an exact divergence from a teacher as the loss, on any rollouts.

    Attributes:
        objective: divergence to minimise, one of objectives.divergence.
        keep_tokens: fraction of each rollout's tokens to learn from; null for all. The loss is then a mean over the
            kept tokens.
        keep_by: the ranking of tokens, one of TIP's (formulas in objectives.token_weights). Its divergence is the
            reverse KL, of q3 the forward KL, whichever divergence is minimised. `entropy` samples.
        clip_divergence: quantile of the batch's divergences above which they count as that quantile in the ranking;
            null: not clipped, as in the paper. One outlier then leaves the ranking to the entropies.
    """

    asks: ClassVar[Mapping[str, Ask]] = {"teacher": Ask.FULL}
    objective: ClassVar[str]
    keep_tokens: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    keep_by: Annotated[Selector, AddedKey] = "tip"
    clip_divergence: Annotated[Annotated[FiniteFloat, Field(gt=0, lt=1)] | None, AddedKey] = None

    @model_validator(mode="after")
    def _no_idle_keys(self) -> LossSignal:
        for key in ("keep_by", "clip_divergence"):
            if self.keep_tokens is None and key in self.model_fields_set and getattr(self, key) is not None:
                raise Refused(
                    "All tokens are kept, so this has no effect.",
                    key=key,
                    value=getattr(self, key),
                    remedy="Set keep_tokens, such as 0.5, or leave this out.",
                )
        if self.clip_divergence is not None and self.keep_by not in _CLIPPED:
            raise Refused(
                f"The ranking {self.keep_by} does not scale a divergence, so this has no effect.",
                key="clip_divergence",
                value=self.clip_divergence,
                remedy=f"Leave it out, or use keep_by: {' or '.join(_CLIPPED)}.",
            )
        return self

    def divergence_options(self) -> dict[str, Any]:
        """Return the arguments of objectives.divergence that select the divergence."""
        return {"objective": self.objective}

    def teacher(self, frozen: Mapping[str, GivenLogits | LinearLogits]) -> GivenLogits | LinearLogits | ComposedLogits:
        """Return the logits to compare the student with, given the frozen models' logits by role."""
        return frozen["teacher"]


def reads_scores(signal: Signal) -> bool:
    """Report whether a signal reads the verifier's scores, and so the labels."""
    return isinstance(signal, AdvantageSignal) and SCORES in signal.reads
