"""The `s2d` section of a verl command in stage 2b, read and checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_s2d.errors import UserError
from verl_s2d.verl_settings.engine_checks import check_logits_visible, check_megatron, check_weights
from verl_s2d.verl_settings.lora_checks import check_lora


@dataclass(frozen=True)
class OpdConfig:
    """Settings of on-policy distillation.

    Attributes:
        teacher_path: checkpoint of the frozen teacher (`s2d.teacher.path`), a directory or a hub id.
        trust_remote_code: run code that the teacher's checkpoint brings (`s2d.teacher.trust_remote_code`).
        objective: `advantage`, the sampled-token signal through verl's policy loss; `reverse_kl` or `jsd`, the exact
            divergence over the full vocabulary as a loss.
        beta: scale of the advantage.
        jsd_beta: weight of the teacher's side in `jsd`, between 0 and 1.
        whiten_advantages: normalise advantages over the batch's response tokens.
        advantage_clip: largest magnitude of an advantage; null for no limit.
        chunk_tokens: tokens whose logits exist at a time; null for the default (objectives/chunk_sizes.py).
        materialise_logits: let the engine make all the student's logits, instead of working from hidden states and
            output embedding.
        keep_tokens: share of each rollout's tokens on which an exact divergence is minimised, chosen by TIP's score of
            entropy and reverse KL; null for all of them. verl's loss_agg_mode is then one over kept tokens, and so is
            the jsd that is logged.
        health_top_k: log how far the k most likely ids of student and teacher agree; null for not.
        skip_limit: updates left out in a row, because their gradient was not finite, after which to stop.
        token_budget: sampled tokens after which to stop; null for as many steps as verl is asked for.
        save_minutes: minutes without a checkpoint after which to save besides every trainer.save_freq steps; null for
            by steps only.
        poll_interval: seconds between looks for finished rollouts.
    """

    teacher_path: str
    trust_remote_code: bool = False
    objective: str = "advantage"
    beta: float = 1.0
    jsd_beta: float = 0.5
    whiten_advantages: bool = False
    advantage_clip: float | None = None
    chunk_tokens: int | None = None
    materialise_logits: bool = False
    keep_tokens: float | None = None
    health_top_k: int | None = None
    skip_limit: int = 5
    token_budget: int | None = None
    save_minutes: float | None = None
    poll_interval: float = 0.05

    def for_workers(self) -> dict[str, Any]:
        """The `s2d` section with every key in it."""
        section = asdict(self)
        teacher = {"path": section.pop("teacher_path"), "trust_remote_code": section.pop("trust_remote_code")}
        return section | {"teacher": teacher}


OBJECTIVES = ("advantage", "reverse_kl", "jsd")
_TEACHER_KEYS = ("path", "trust_remote_code")


def read_opd_config(config: DictConfig) -> OpdConfig:
    """Read `s2d` from verl's config and check it against the rest of that config.

    Raises:
        UserError: a missing or unknown key, or a verl setting under which the teacher would not be the teacher.
    """
    section = _mapping(OmegaConf.select(config, "s2d"), "s2d")
    teacher = _mapping(section.pop("teacher", None), "s2d.teacher")
    known = [f.name for f in fields(OpdConfig) if f.name not in ("teacher_path", "trust_remote_code")]
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
    opd = OpdConfig(
        teacher_path=teacher["path"], trust_remote_code=bool(teacher.get("trust_remote_code", False)), **section
    )
    _check_values(opd)
    if opd.objective not in OBJECTIVES:
        raise UserError(
            "unknown objective", key="s2d.objective", value=opd.objective, remedy=f"one of {list(OBJECTIVES)}"
        )
    _check_verl(config)
    if opd.objective != "advantage":
        _check_full_vocabulary(config, opd)
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
        ("jsd_beta", _is_number(opd.jsd_beta) and 0 < opd.jsd_beta < 1, "a number between 0 and 1"),
        ("whiten_advantages", isinstance(opd.whiten_advantages, bool), "true or false"),
        (
            "advantage_clip",
            opd.advantage_clip is None or (_is_number(opd.advantage_clip) and opd.advantage_clip > 0),
            "a number above 0, or null",
        ),
        ("chunk_tokens", opd.chunk_tokens is None or _is_count(opd.chunk_tokens), "a whole number above 0, or null"),
        ("materialise_logits", isinstance(opd.materialise_logits, bool), "true or false"),
        (
            "keep_tokens",
            opd.keep_tokens is None or (_is_number(opd.keep_tokens) and 0 < opd.keep_tokens <= 1),
            "a number above 0 and at most 1, or null",
        ),
        ("health_top_k", opd.health_top_k is None or _is_count(opd.health_top_k), "a whole number above 0, or null"),
        ("skip_limit", _is_count(opd.skip_limit), "a whole number above 0"),
        ("poll_interval", _is_number(opd.poll_interval) and opd.poll_interval > 0, "seconds, more than 0"),
    ):
        if not fits:
            raise UserError(
                "not a usable value", key=f"s2d.{name}", value=getattr(opd, name), remedy=f"set it to {remedy}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_full_vocabulary(config: DictConfig, opd: OpdConfig) -> None:
    """Settings of verl's that an exact divergence as the loss would silently not obey."""
    actor, section = config.actor_rollout_ref.actor, f"s2d.objective={opd.objective}"
    correction = (config.algorithm.get("rollout_correction") or {}).get("rollout_is")
    for key, value, off in (
        ("actor_rollout_ref.actor.entropy_coeff", actor.entropy_coeff, 0),
        ("algorithm.rollout_correction.rollout_is", correction, None),
    ):
        if value not in (off, None):
            raise UserError(
                f"there is no policy loss with {section}, so this would have no effect",
                key=key,
                value=value,
                remedy=f"set {key}={'null' if off is None else off}, or use s2d.objective=advantage",
            )
    megatron = actor.strategy == "megatron"
    name = "megatron" if megatron else "fsdp_config"
    engine, engine_key = actor.get(name) or {}, f"actor_rollout_ref.actor.{name}"
    # verl's older key for it: above 1 it replaces the engine's.
    if not megatron and (older := actor.get("ulysses_sequence_parallel_size") or 1) > 1:
        engine = OmegaConf.merge(engine, {"ulysses_sequence_parallel_size": older})
    check_logits_visible(config.actor_rollout_ref.model, engine, engine_key)
    if megatron:
        check_megatron(engine, engine_key)
    divided = (engine.get("ulysses_sequence_parallel_size") or 1) > 1
    for key, value, fits in (
        ("s2d.keep_tokens", opd.keep_tokens, not (megatron or divided)),
        ("s2d.health_top_k", opd.health_top_k, not megatron),
    ):
        if value is not None and not fits:
            raise UserError(
                "this needs whole rollouts and the whole vocabulary on each rank",
                key=key,
                value=value,
                remedy="leave it out, or use FSDP without sequence parallelism",
            )


def _check_verl(config: DictConfig) -> None:
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if config.algorithm.adv_estimator != "s2d_opd":
        raise UserError(
            "the trainer s2d_opd works with its own advantage estimator",
            key="algorithm.adv_estimator",
            value=str(config.algorithm.adv_estimator),
            remedy="set algorithm.adv_estimator=s2d_opd",
        )
    check_lora(model, actor.strategy, "actor_rollout_ref.model", config.actor_rollout_ref.rollout.name)
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
    check_weights(ref.get("megatron") or {}, "actor_rollout_ref.ref.megatron")
    if not ref.log_prob_use_dynamic_bsz and ref.log_prob_micro_batch_size_per_gpu is None:
        raise UserError(
            "the teacher's forward pass needs a micro-batch size",
            key="actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            value=None,
            remedy="set it (the rollout's log_prob_micro_batch_size_per_gpu is a good value), or use dynamic batches",
        )
