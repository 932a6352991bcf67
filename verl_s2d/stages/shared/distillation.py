"""Read the keys of `s2d` that stages 2a and 2b share: the signal, its frozen models, how a loss is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from omegaconf import OmegaConf
from pydantic import Field, SerializeAsAny

from verl_s2d.errors import UserError
from verl_s2d.recipe.source import require_one_server
from verl_s2d.sampling.generation_settings import require_writable
from verl_s2d.signals.signal import AdvantageSignal, Ask, LossSignal, Signal
from verl_s2d.signals.signal_registry import check_placement, read_signal, types_of, types_with
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.shared.problem_weights import MeasuredWeights
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.model_pair import check_tokens
from verl_s2d.teachers.router import TEACHER, Router
from verl_s2d.validation import Section, validated

Count = Annotated[int, Field(gt=0)]


class Distillation(Section):
    """Settings of a stage that learns from frozen models.

    Attributes:
        stored: answers that the training data hold, so that the signal's models are not needed.
        signal: turns the frozen models' outputs into an advantage or a loss.
        models: role -> frozen model, in the order of the signal's `asks`. Models that serve data sources come first,
            under names of their own, and play the role of the teacher together.
        chunk_tokens: tokens whose logits exist at a time; null for the default (objectives/chunk_sizes.py).
        materialise_logits: let the engine make all the student's logits, instead of working from hidden states and
            output embedding.
        health_top_k: log the agreement of the k most likely ids of student and teacher; null: off.
        skip_limit: stop after this many consecutive updates skipped for a gradient that is not finite.
        problem_weights: weigh problems by measured pass rates; null: all weigh the same.
    """

    stored: ClassVar[tuple[Ask, ...]] = ()
    signal: SerializeAsAny[Signal]
    models: dict[str, FrozenModel]
    chunk_tokens: Count | None = None
    materialise_logits: bool = False
    health_top_k: Count | None = None
    skip_limit: Count = 5
    problem_weights: MeasuredWeights | None = None

    @property
    def is_loss(self) -> bool:
        """Report whether the signal is a loss on the student's logits, not an advantage."""
        return not isinstance(self.signal, AdvantageSignal)

    @property
    def exact(self) -> bool:
        """Report whether the signal is a loss over the whole vocabulary."""
        return isinstance(self.signal, LossSignal)

    @property
    def router(self) -> Router | None:
        """Return the router to the teachers; None where one teacher is asked about everything."""
        routed = {role: model for role, model in self.models.items() if model.serves}
        return Router(routed) if routed else None

    def written(self) -> dict[str, Any]:
        """Write the section with every key in it; `read_distillation` reads it back."""
        return self.model_dump(by_alias=True)


D = TypeVar("D", bound=Distillation)
_NEEDS: Mapping[str, tuple[type[Signal], ...]] = {
    "chunk_tokens": (LossSignal, TopK),
    "materialise_logits": (LossSignal, TopK),
    "health_top_k": (LossSignal,),
}
"""Key -> signals for which it has an effect."""


def read_distillation(kind: type[D], section: Any, *, signal: str) -> D:
    """Read `s2d` of a verl command.

    Args:
        kind: class of the stage's settings.
        section: the section, any mapping or None.
        signal: default type of the signal.

    Raises:
        UserError: a missing, unknown or invalid key, or a key without effect.
    """
    keys = mapping(section, "s2d")
    chosen = read_signal(mapping(keys.pop("signal", None), "s2d.signal"), default=signal, key="s2d.signal")
    models = _models(keys, chosen, chosen.models(kind.stored))
    for name, kinds in _NEEDS.items():
        if keys.get(name) not in (None, False) and not isinstance(chosen, kinds):
            raise UserError(
                f"signal {chosen.type} makes no such logits, so this has no effect",
                key=f"s2d.{name}",
                value=keys[name],
                remedy=f"leave it out, or use a signal over the whole vocabulary: {', '.join(types_of(LossSignal))}",
            )
    for name, value in keys.items():
        if name not in kind.model_fields:
            remedy = f"known keys: {', '.join(kind.model_fields)}"
            raise UserError(
                "unknown key",
                key=f"s2d.{name}",
                value=value,
                remedy=f"a signal's key is s2d.signal.{name}; {remedy}" if types_with(name) else remedy,
            )
    return validated(kind, keys | {"signal": chosen, "models": models}, key="s2d")


def check_layout(settings: Distillation, *, megatron: bool, sequence_parallel: bool) -> None:
    """Check an exact signal against the engine's sharding of rollouts and vocabulary.

    Raises:
        UserError: the signal needs whole rollouts or a common vocabulary shard, and no rank has them.
    """
    if settings.router is not None and (megatron or sequence_parallel):
        role, model = next(iter(settings.router.models.items()))
        raise UserError(
            "a loss over the whole vocabulary asks each teacher about whole rollouts, and no rank has them",
            key=f"s2d.models.{role}.serves",
            value=list(model.serves),
            remedy=f"use FSDP without sequence parallelism, or an advantage: {', '.join(types_of(AdvantageSignal))}",
        )
    for key, value, fits in (
        ("s2d.signal.keep_tokens", settings.signal.keep_tokens, not (megatron or sequence_parallel)),
        ("s2d.health_top_k", settings.health_top_k, not megatron),
    ):
        if value is not None and not fits:
            raise UserError(
                "this key needs whole rollouts and the whole vocabulary on each rank",
                key=key,
                value=value,
                remedy="leave it out, or use FSDP without sequence parallelism",
            )
    if megatron and len(settings.models) > 1:
        raise UserError(
            "Megatron pads each model's vocabulary for itself, so ranks hold other ids of one frozen model than of the "
            "next",
            key="s2d.signal.type",
            value=settings.signal.type,
            remedy="use FSDP, or a signal that asks one model",
        )


def check_models(student: str, settings: Distillation, *, student_key: str) -> list[str]:
    """Compare every frozen model's tokens with the student's; return harmless differences.

    Raises:
        UserError: a model that cannot be read, tokenizers that differ, or a student that no checkpoint could hold.
    """
    require_writable(student, student_key)
    found = []
    for role, model in settings.models.items():
        found += check_tokens(
            student,
            model.path,
            revision=model.revision,
            student_key=student_key,
            teacher_key=f"{model_key(role)}.path",
        )
    return found


def mapping(section: Any, key: str) -> dict[str, Any]:
    """Copy a section of the configuration; empty for None.

    Raises:
        UserError: the section is a value.
    """
    if section is None:
        return {}
    if not OmegaConf.is_dict(section) and not isinstance(section, Mapping):
        raise UserError(
            "this is a section, not a value",
            key=key,
            value=section,
            remedy="set the keys below it, as in s2d.teacher.path",
        )
    return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else dict(section)


def model_key(role: str, short: bool = True) -> str:
    """Return the dotted key of a role's section; the teacher's has a short form."""
    return "s2d.teacher" if role == "teacher" and short else f"s2d.models.{role}"


def _models(keys: dict[str, Any], signal: Signal, roles: Sequence[str]) -> dict[str, FrozenModel]:
    """Remove `models`, and `teacher` (short for models.teacher), from the section's keys and read them."""
    short = mapping(keys.pop("teacher", None), "s2d.teacher")
    sections = mapping(keys.pop("models", None), "s2d.models")
    sections = {role: mapping(section, f"s2d.models.{role}") for role, section in sections.items()}
    long = set(sections)
    if any(short.values()):
        if "teacher" in sections:
            raise UserError(
                "the teacher is given twice",
                key="s2d.teacher",
                value=short,
                remedy="leave out this key or s2d.models.teacher, of which it is the short form",
            )
        sections["teacher"] = short
    models = _routed(sections, signal, roles)
    for role in roles:
        if role == TEACHER and models:
            continue
        key, section = model_key(role, short=role not in long), sections.pop(role, {})
        models[role] = _model({**(short if role == TEACHER else {}), **section}, key, signal, role)
    for role, section in sections.items():
        raise UserError(
            f"signal {signal.type} asks no model in this role here, so it has no effect",
            key=model_key(role, short=role not in long),
            value=section,
            remedy=f"leave it out; models that are asked: {', '.join(roles) or 'none'}",
        )
    return models


def _model(section: Mapping[str, Any], key: str, signal: Signal, role: str) -> FrozenModel:
    if not section.get("path"):
        raise UserError(
            f"signal {signal.type} asks a frozen model in the role of the {role}",
            key=f"{key}.path",
            value=section.get("path"),
            remedy=f"add +{key}.path=<checkpoint directory or hub id>",
        )
    model = validated(FrozenModel, section, key=key)
    check_placement(signal, role, model.placement, f"{key}.placement")
    return model


def _routed(sections: dict[str, dict[str, Any]], signal: Signal, asked: Sequence[str]) -> dict[str, FrozenModel]:
    """Remove the models that serve data sources from the sections and read them.

    Raises:
        UserError: they cannot play the role of the teacher, or two serve one data source.
    """
    able = TEACHER in asked and signal.asks[TEACHER] is not Ask.TOP_K
    roles = [role for role, section in sections.items() if "serves" in section]
    for role in roles:
        key, serves = f"s2d.models.{role}.serves", sections[role]["serves"]
        if not serves:
            raise UserError(
                "the model serves nothing", key=key, value=serves, remedy="name data sources, or leave it out"
            )
        if not able or role in asked:
            what = f"asks the {role} about all problems" if role in asked else "asks no teacher that could be several"
            raise UserError(
                f"signal {signal.type} {what}, so nothing is routed by data source",
                key=key,
                value=serves,
                remedy="leave it out, or use a signal with a teacher, and another name for the model",
            )
        if TEACHER in sections:
            raise UserError(
                "models that serve data sources take the teacher's place, and a teacher is given as well",
                key="s2d.teacher",
                value=sections[TEACHER],
                remedy="leave it out, or let it serve its data sources under another name",
            )
    models = {role: _model(sections.pop(role), f"s2d.models.{role}", signal, TEACHER) for role in roles}
    require_one_server({role: model.serves for role, model in models.items()}, "s2d.models")
    return models
