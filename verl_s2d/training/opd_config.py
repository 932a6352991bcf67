"""The `s2d` section of a verl command in stage 2b, read and checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_s2d.errors import UserError


@dataclass(frozen=True)
class OpdConfig:
    """Settings of on-policy distillation.

    Attributes:
        teacher_path: checkpoint of the frozen teacher (`s2d.teacher.path`), a directory or a hub id.
        objective: `advantage`, the sampled-token signal through verl's policy loss.
        beta: scale of the advantage.
        whiten_advantages: normalise advantages over the batch's response tokens.
        poll_interval: seconds between looks for finished rollouts.
    """

    teacher_path: str
    objective: str = "advantage"
    beta: float = 1.0
    whiten_advantages: bool = False
    poll_interval: float = 0.05


OBJECTIVES = ("advantage",)
_TEACHER_KEYS = ("path", "trust_remote_code")


def read_opd_config(config: DictConfig) -> OpdConfig:
    """Read `s2d` from verl's config and check it against the rest of that config.

    Raises:
        UserError: a missing or unknown key, or a verl setting under which the teacher would not be the teacher.
    """
    section = _mapping(OmegaConf.select(config, "s2d"), "s2d")
    teacher = _mapping(section.pop("teacher", None), "s2d.teacher")
    known = [f.name for f in fields(OpdConfig) if f.name != "teacher_path"]
    for key in section:
        if key not in known:
            raise UserError("unknown key", key=f"s2d.{key}", value=section[key], remedy=f"known keys: {known}")
    for key in teacher:
        if key not in _TEACHER_KEYS:
            raise UserError(
                "unknown key", key=f"s2d.teacher.{key}", value=teacher[key], remedy=f"known keys: {list(_TEACHER_KEYS)}"
            )
    if not teacher.get("path"):
        raise UserError(
            "on-policy distillation needs a teacher",
            key="s2d.teacher.path",
            value=teacher.get("path"),
            remedy="add +s2d.teacher.path=<checkpoint directory or hub id>",
        )
    opd = OpdConfig(teacher_path=teacher["path"], **section)
    _check_values(opd)
    if opd.objective not in OBJECTIVES:
        raise UserError(
            "unknown objective", key="s2d.objective", value=opd.objective, remedy=f"one of {list(OBJECTIVES)}"
        )
    _check_verl(config)
    return opd


def _mapping(section: Any, key: str) -> dict[str, Any]:
    if section is None:
        return {}
    if not OmegaConf.is_dict(section) and not isinstance(section, dict):
        raise UserError(
            "this is a section, not a value",
            key=key,
            value=section,
            remedy="set the keys below it, as in s2d.teacher.path",
        )
    return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else dict(section)


def _check_values(opd: OpdConfig) -> None:
    for name, fits, remedy in (
        ("beta", _is_number(opd.beta), "a finite number"),
        ("whiten_advantages", isinstance(opd.whiten_advantages, bool), "true or false"),
        ("poll_interval", _is_number(opd.poll_interval) and opd.poll_interval > 0, "seconds, more than 0"),
    ):
        if not fits:
            raise UserError(
                "not a usable value", key=f"s2d.{name}", value=getattr(opd, name), remedy=f"set it to {remedy}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_verl(config: DictConfig) -> None:
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if config.algorithm.adv_estimator != "s2d_opd":
        raise UserError(
            "the trainer s2d_opd works with its own advantage estimator",
            key="algorithm.adv_estimator",
            value=str(config.algorithm.adv_estimator),
            remedy="set algorithm.adv_estimator=s2d_opd",
        )
    if (
        (model.get("lora_rank", 0) or 0) > 0
        or model.get("lora", {}).get("rank", 0) > 0
        or model.get("lora_adapter_path")
    ):
        raise UserError(
            "with LoRA verl takes the base student for the reference policy, so the teacher would never be asked",
            key="actor_rollout_ref.model.lora_rank",
            value=model.get("lora_rank", 0),
            remedy="train the full student in this stage (lora_rank=0)",
        )
    for key, on in (
        ("actor_rollout_ref.actor.use_kl_loss", actor.use_kl_loss),
        ("algorithm.use_kl_in_reward", config.algorithm.use_kl_in_reward),
        ("reward.reward_model.enable", config.reward.reward_model.enable),
        ("distillation.enabled", (config.get("distillation") or {}).get("enabled", False)),
    ):
        if on:
            raise UserError(
                "the teacher takes the place of the reference policy and of every reward in this stage",
                key=key,
                value=True,
                remedy=f"set {key}=False",
            )
    ref = config.actor_rollout_ref.ref
    if not ref.log_prob_use_dynamic_bsz and ref.log_prob_micro_batch_size_per_gpu is None:
        raise UserError(
            "the teacher's forward pass needs a micro-batch size",
            key="actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            value=None,
            remedy="set it (the rollout's log_prob_micro_batch_size_per_gpu is a good value), or use dynamic batches",
        )
