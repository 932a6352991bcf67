"""Read and check the `s2d` section of a verl command of stages 1 and 3, before anything starts."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import SerializeAsAny

from verl_s2d.errors import UserError
from verl_s2d.recipe.until import TRAVEL
from verl_s2d.signals.credit.credit import Credit
from verl_s2d.signals.credit.credit_registry import read_credit
from verl_s2d.stages.shared.distillation import mapping
from verl_s2d.stages.shared.teacher_as_reference import check_reference_is_free
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.validation import Section, suggestion, validated

_OTHERS = ("until", "save_minutes")
"""Keys of `s2d` that have readers of their own."""


class CreditSettings(Section):
    """Settings of GRPO with credit.

    Attributes:
        credit: changes GRPO's update.
        teacher: frozen model whose log-probs it reads.
    """

    credit: SerializeAsAny[Credit]
    teacher: FrozenModel

    def written(self) -> dict[str, Any]:
        """Write the section with every key in it; `read_credit_settings` reads it back."""
        return self.model_dump(by_alias=True)


def read_credit_settings(section: Any) -> CreditSettings | None:
    """Read the section alone, as workers receive it; None for plain GRPO.

    Raises:
        UserError: an unknown key, a credit without a teacher, or a teacher without a credit.
    """
    keys = mapping(section, "s2d")
    credit, teacher = (mapping(keys.pop(name, None), f"s2d.{name}") for name in ("credit", "teacher"))
    for name, value in keys.items():
        if name not in _OTHERS:
            remedy = suggestion(name, ("credit", "teacher", *_OTHERS))
            raise UserError("unknown key", key=f"s2d.{name}", value=value, remedy=remedy)
    if not credit and not teacher:
        return None
    if not credit:
        raise UserError(
            "GRPO asks a teacher only for its credit, so this has no effect",
            key="s2d.teacher",
            value=teacher,
            remedy="add +s2d.credit.type=rlsd, or leave it out",
        )
    chosen = read_credit(credit, key="s2d.credit")
    if not teacher.get("path"):
        raise UserError(
            f"credit {chosen.type} asks a teacher",
            key="s2d.teacher.path",
            value=teacher.get("path"),
            remedy="add +s2d.teacher.path=<checkpoint directory or hub id>",
        )
    model = validated(FrozenModel, teacher, key="s2d.teacher")
    if model.servers is not None:
        raise UserError(
            "a credit's teacher runs beside the student",
            key="s2d.teacher.placement",
            value=model.placement,
            remedy="leave it out; teachers on servers are for stage 2b",
        )
    return CreditSettings(credit=chosen, teacher=model)


def measured_by(config: DictConfig) -> dict[str, str]:
    """Map what GRPO measures for `until` -> its metric. A credit's teacher takes the place of the stage's start."""
    return {} if OmegaConf.select(config, "s2d.credit") else {TRAVEL: "s2d/travel"}


def read_credit_config(config: DictConfig) -> CreditSettings | None:
    """Read `s2d` from verl's config and check it against the rest of that config.

    Raises:
        UserError: as above, or a setting of verl under which the credit would do something else.
    """
    settings = read_credit_settings(OmegaConf.select(config, "s2d"))
    if settings is None:
        return None
    check_reference_is_free(config)
    if settings.credit.scheduled and "until" in config.s2d:
        raise UserError(
            "a rule that may end the stage leaves the number of steps open, and this credit's schedule needs it",
            key="s2d.credit.type",
            value=settings.credit.type,
            remedy="set +s2d.credit.beta_end to beta, or leave out s2d.until (a recipe: until, a match by tokens)",
        )
    return settings
