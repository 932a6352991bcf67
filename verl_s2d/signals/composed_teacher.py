"""Define the composed teacher: frozen models multiplied with weights, log q = sum_i c_i log p_i - log Z."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, FiniteFloat

from verl_s2d.signals.exact import ReverseKL
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal import Ask
from verl_s2d.validation import Refused

if TYPE_CHECKING:
    import torch

    from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits

SELF = "self"
"""Term of the student itself, held fixed."""


def _named(role: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w-]*", role, re.ASCII):
        raise Refused(
            "A role is part of dotted keys.", value=role, remedy="Use letters, digits, _ and -, as in math_teacher."
        )
    return role


Role = Annotated[str, AfterValidator(_named)]
"""Role of a frozen model."""
# Beyond 4 a composed teacher puts its mass on ids that none of its models would sample.
Weight = Annotated[FiniteFloat, Field(ge=-4, le=4)]


def in_order(roles: Mapping[str, float]) -> dict[str, float]:
    """Order roles, the teacher first: how a user writes them changes neither a sum's rounding nor an engine."""
    return {role: roles[role] for role in sorted(roles, key=lambda role: (role != "teacher", role))}


class SampledComposition(Sampled):
    """The sampled signal from a composed teacher, as a subclass's `weights` say.

    A_t = beta (sum_i c_i log p_i(y_t) - log pi_old(y_t)); log Z does not depend on the sampled token and is left out,
    so the expected gradient is that of KL(pi_S || q).
    """

    type: str

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """Map role of a frozen model, or SELF -> its weight c_i."""

    @property
    def asks(self) -> Mapping[str, Ask]:
        return {role: Ask.SAMPLED for role in self.weights if role != SELF}

    def advantages(
        self, student_log_probs: torch.Tensor, frozen: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        composed = self.composed({**frozen, SELF: student_log_probs})
        return super().advantages(student_log_probs, {"teacher": composed}, mask)

    def composed(self, log_probs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute sum_i c_i log p_i(y_t), (batch, response) float32, from the terms' log-probs."""
        first, *others = (factor * log_probs[role].float() for role, factor in self.weights.items())
        return sum(others, first)


class ExactComposition(ReverseKL):
    """KL(pi_S || q) over the whole vocabulary, q composed of frozen models as a subclass's `weights` say."""

    type: str

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """Map role of a frozen model -> its weight c_i; they sum to 1."""

    @property
    def asks(self) -> Mapping[str, Ask]:
        return dict.fromkeys(self.weights, Ask.FULL)

    def teacher(self, frozen: Mapping[str, GivenLogits | LinearLogits]) -> ComposedLogits:
        from verl_s2d.objectives.logits import ComposedLogits

        return ComposedLogits(tuple(frozen[role] for role in self.weights), tuple(self.weights.values()))


def _checked(terms: dict[str, float]) -> dict[str, float]:
    if not terms.keys() - {SELF}:
        raise Refused(
            "A composed teacher needs the term of a frozen model.",
            value=terms,
            remedy="Write role: weight, as in {teacher: 1.25, base: -0.25}.",
        )
    for role, weight in terms.items():
        if weight == 0:
            raise Refused("A term with weight 0 has no effect.", key=role, value=weight, remedy="Leave it out.")
    total = math.fsum(terms.values())
    if abs(total - 1) > 1e-6:
        raise Refused(
            f"The weights sum to {total:.7g}, and a distribution's exponents to 1.",
            value=terms,
            remedy="Change them to sum to 1; the student itself may be a term, `self`, of the sampled form.",
        )
    return in_order(terms)


def _without_self(terms: dict[str, float]) -> dict[str, float]:
    if SELF in terms:
        rest = 1 - terms[SELF]
        others = {role: round(weight / rest, 6) for role, weight in terms.items() if role != SELF} if rest else "others"
        raise Refused(
            "The student's own logits, held fixed, only scale the exact gradient, by 1 minus their weight.",
            key=SELF,
            value=terms[SELF],
            remedy=f"Leave the term out ({others}), and change the learning rate instead.",
        )
    return terms


Terms = Annotated[dict[Role, Weight], AfterValidator(_checked)]


def _normalised(terms: Mapping[str, float]) -> Mapping[str, float]:
    total = math.fsum(terms.values())
    return {role: weight / total for role, weight in terms.items()}


class Composed(SampledComposition):
    """The sampled signal from log q = sum_i c_i log p_i - log Z with weights of one's own.

    Attributes:
        terms: role of a frozen model -> its weight c_i, at most 4 in magnitude; they sum to 1. The role `self` is the
            student before the update: as in log q = (1 - c) log q' + c log pi_old - log Z, which scales the advantage
            from q' by 1 - c.
    """

    type: str = "composed"
    exact_form: ClassVar[str | None] = "composed_exact"
    terms: Terms

    @property
    def weights(self) -> Mapping[str, float]:
        return _normalised(self.terms)


class ExactComposed(ExactComposition):
    """KL(pi_S || q) over the whole vocabulary with weights of one's own.

    Attributes:
        terms: as in Composed, without `self`.
    """

    type: str = "composed_exact"
    terms: Annotated[Terms, AfterValidator(_without_self)]

    @property
    def weights(self) -> Mapping[str, float]:
        return _normalised(self.terms)
