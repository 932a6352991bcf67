"""Define Delta-OPD: add what RL taught other models to the student's own start (ShiftMOPD, arXiv 2610.10460)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from verl_s2d.signals.composed_teacher import SELF, ExactComposition, Role, SampledComposition, in_order
from verl_s2d.validation import Refused, Section


class _Deltas(Section):
    """Keys of both forms."""

    initial: Role = "student"
    pairs: dict[Role, Role] = Field({"teacher": "base"})

    @model_validator(mode="after")
    def _each_role_once(self) -> _Deltas:
        if not self.pairs:
            raise Refused(
                "Without a pair the student would learn to stay as it is.",
                key="pairs",
                value=self.pairs,
                remedy="Write role after RL: role before, as in {teacher: base}.",
            )
        roles = [self.initial, *self.pairs, *self.pairs.values()]
        twice = [role for role, count in Counter(roles).items() if count > 1]
        if twice or SELF in roles:
            role = twice[0] if twice else SELF
            raise Refused(
                f"The role {role} appears twice, so its terms cancel or add up."
                if twice
                else "`self` is the student as it learns, and no frozen model.",
                key="initial" if role == self.initial else "pairs",
                value=self.initial if role == self.initial else self.pairs,
                remedy="Name each model once, initial: student, pairs: {teacher: base}; weights of one's own are terms "
                "of the signals composed and composed_exact.",
            )
        return self

    @property
    def weights(self) -> Mapping[str, float]:
        return in_order({self.initial: 1.0} | dict.fromkeys(self.pairs, 1.0) | dict.fromkeys(self.pairs.values(), -1.0))


class Delta(_Deltas, SampledComposition):
    """The sampled signal from log q = log pi_A + sum_i (log pi_Ti - log pi_Bi) - log Z (arXiv 2610.10460).

    A is the student before training, T_i a model after RL and B_i the same model before. Only differences enter, so the
    pairs may be of any size. The publication subtracts the batch's mean (`baseline: batch_mean`) and averages tokens
    within responses (verl's loss_agg_mode seq-mean-token-mean), without PPO's clip.

    Attributes:
        initial: role of A.
        pairs: role of T_i -> role of B_i. All pairs act on all prompts.
    """

    type: str = "delta"
    exact_form: ClassVar[str | None] = "delta_exact"


class ExactDelta(_Deltas, ExactComposition):
    """KL(pi_S || q) over the whole vocabulary, q as in Delta; the publication's exact form.

    Attributes:
        initial, pairs: as in Delta.
    """

    type: str = "delta_exact"
