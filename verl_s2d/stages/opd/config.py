"""Read and check the `s2d` section of a verl command in stage 2b, before anything starts."""

from __future__ import annotations

from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, model_validator

from verl_s2d.data.teacher_prompt import columns_of
from verl_s2d.errors import UserError
from verl_s2d.recipe.stage_settings import Prefix
from verl_s2d.recipe.until import DIVERGENCE, TRAVEL, Until
from verl_s2d.signals.signal import GROUPS, Positive, reads_scores
from verl_s2d.stages.opd.prefix_rollouts import check_prefix
from verl_s2d.stages.opd.teacher_refresh import check_refresh
from verl_s2d.stages.shared.distillation import Count, Distillation, check_layout, model_key, read_distillation
from verl_s2d.stages.shared.teacher_as_reference import check_reference_is_free
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.router import TEACHER
from verl_s2d.validation import Refused
from verl_s2d.verifiers.registry import by_data_source, extractor_of
from verl_s2d.verl_settings.engine_checks import check_logits_visible, check_megatron
from verl_s2d.verl_settings.lora_checks import check_lora

ROLE = "frozen_role"
"""Entry of a batch: role of the frozen model whose log-probs the workers compute."""

START = "start"
"""Role of the student as this stage found it."""


def _template(text: str) -> str:
    columns_of(text)
    return text


class OpdConfig(Distillation):
    """Settings of on-policy distillation, the section `s2d`.

    Attributes:
        until: rules that end training, with a checkpoint, before verl's number of steps; null: none.
        save_minutes: minutes without a checkpoint after which to save, besides every trainer.save_freq steps; null: by
            steps only.
        poll_interval: seconds between polls for finished rollouts.
        travel: log the distance from the start (objectives.travel). It takes a forward pass of the student as this
            stage found it, unless the signal asks that model anyway, and of the student, which an advantage needs too.
        teacher_prompt: template of the prompt that the teacher reads in place of the student's (data.teacher_prompt);
            null: the student's.
        label_ledger: directory in which to record the problems whose columns that template reads; null: nowhere.
        prompt_ledger: directory in which to record the prompts without labels that are read; null: nowhere.
        teacher_refresh: steps after which the teacher becomes the student of that step, again and again; null: never.
        parse_rate: log the share of finished responses from which this verifier extracts an answer; a name, or with
            options {name: math, form: boxed}, or a mapping of data sources to these. No label is read.
        prefix: lengths at which rollouts are cut, by step; null: at data.max_response_length.
    """

    until: Until | None = None
    save_minutes: float | None = None
    poll_interval: Positive = 0.05
    prefix: Prefix | None = None
    travel: bool = False
    teacher_prompt: Annotated[str, AfterValidator(_template)] | None = None
    label_ledger: str | None = None
    prompt_ledger: str | None = None
    teacher_refresh: Count | None = None
    parse_rate: str | dict[str, Any] | None = None

    @property
    def measured(self) -> dict[str, str]:
        """Map what the trainer measures for `until` -> its metric: the divergence is the one that is minimised."""
        divergence = f"s2d/{self.signal.objective if self.is_loss else 'reverse_kl'}"
        return {**({TRAVEL: "s2d/travel"} if self.travel else {}), **({DIVERGENCE: divergence} if self.models else {})}

    @property
    def own_prompts(self) -> frozenset[str]:
        """Return the roles whose models read other prompts than the student."""
        return frozenset() if self.teacher_prompt is None else frozenset({TEACHER})

    @property
    def apart(self) -> frozenset[str]:
        """Return the roles that share no engine with others, though the checkpoints be equal.

        In a loss the passes of all models are nested, so an engine runs once, with one kind of prompts. A refreshed
        teacher does not stay what its checkpoint is.
        """
        refreshed = frozenset() if self.teacher_refresh is None else frozenset({TEACHER})
        return (self.own_prompts if self.is_loss else frozenset()) | refreshed

    @model_validator(mode="after")
    def _prompts_are_read(self) -> OpdConfig:
        if self.own_prompts - self.models.keys():
            raise Refused(
                f"signal {self.signal.type} asks no model in the role of the teacher, so this has no effect",
                key="teacher_prompt",
                value=self.teacher_prompt,
                remedy="leave it out, or use a signal that asks the teacher",
            )
        if self.own_prompts and self.models[TEACHER].servers is not None:
            raise Refused(
                "servers have room for the student's prompts only",
                key="teacher_prompt",
                value=self.teacher_prompt,
                remedy="leave it out, or use s2d.teacher.placement=colocated",
            )
        if self.label_ledger is not None and not (self.teacher_prompt and columns_of(self.teacher_prompt)):
            raise Refused(
                "no label is read, so this has no effect",
                key="label_ledger",
                value=self.label_ledger,
                remedy="leave it out, or use a teacher_prompt with a column, such as {answer}",
            )
        return self

    def asked(self, student: DictConfig) -> dict[str, FrozenModel]:
        """Map role -> frozen model: the signal's, and for travel the student at this stage's start.

        Args:
            student: verl's section actor_rollout_ref.model.

        Raises:
            UserError: the signal has a role of that name.
        """
        if not self.travel:
            return self.models
        if START in self.models:
            raise UserError(
                "travel asks the student at the stage's start in this role",
                key="s2d.signal.type",
                value=START,
                remedy="rename the signal's role, or leave out s2d.travel",
            )
        return self.models | {START: FrozenModel(path=student.path, trust_remote_code=student.trust_remote_code)}


def read_opd_settings(section: Any) -> OpdConfig:
    """Read the section alone, as workers receive it.

    Raises:
        UserError: a missing or unknown key, or a key without effect.
    """
    return read_distillation(OpdConfig, section, signal="sampled")


def read_opd_config(config: DictConfig) -> OpdConfig:
    """Read `s2d` from verl's config and check it against the rest of that config.

    Raises:
        UserError: as above, or a verl setting under which the reference engine would not compute the teacher.
    """
    opd = read_opd_settings(OmegaConf.select(config, "s2d"))
    _check_verl(config)
    _check_servers(config, opd)
    _check_scores(config, opd)
    opd.asked(config.actor_rollout_ref.model)
    if opd.teacher_refresh is not None:
        check_refresh(opd, config)
    if opd.parse_rate is not None:
        for source in by_data_source(opd.parse_rate) or [None]:
            extractor_of(opd.parse_rate, source, key="s2d.parse_rate")
    if opd.prefix is not None:
        check_prefix(opd.prefix, config)
    if opd.is_loss:
        _check_full_vocabulary(config, opd)
    elif opd.signal.gate is not None:
        _check_gate(config, opd.signal.gate)
    return opd


def _check_gate(config: DictConfig, gate: list[float]) -> None:
    """Raise UserError where the ratio of trainer and sampler is unknown, always 1, or multiplied in by verl too."""
    correction = config.algorithm.get("rollout_correction") or {}
    for key, value, on, why in (
        (
            "actor_rollout_ref.rollout.calculate_log_probs",
            config.actor_rollout_ref.rollout.calculate_log_probs,
            False,
            "the sampler's log-probabilities are not computed",
        ),
        (
            "algorithm.rollout_correction.bypass_mode",
            bool(correction.get("bypass_mode")),
            True,
            "the trainer's log-probabilities are the sampler's",
        ),
        (
            "algorithm.rollout_correction.rollout_is",
            correction.get("rollout_is") is not None,
            True,
            "verl weighs the loss by the same ratio",
        ),
    ):
        if value == on:
            raise UserError(
                f"s2d.signal.gate compares the engine that trains with the one that samples, and {why}",
                key="s2d.signal.gate",
                value=gate,
                remedy=f"leave it out, or change {key}",
            )


def _check_full_vocabulary(config: DictConfig, opd: OpdConfig) -> None:
    """Raise UserError for verl settings that an exact divergence as the loss would silently ignore."""
    actor = config.actor_rollout_ref.actor
    correction = (config.algorithm.get("rollout_correction") or {}).get("rollout_is")
    for key, value, off in (
        ("actor_rollout_ref.actor.entropy_coeff", actor.entropy_coeff, 0),
        ("algorithm.rollout_correction.rollout_is", correction, None),
    ):
        if value not in (off, None):
            raise UserError(
                f"s2d.signal.type={opd.signal.type} uses no policy loss, so this key has no effect",
                key=key,
                value=value,
                remedy=f"set {key}={'null' if off is None else off}, or use s2d.signal.type=sampled",
            )
    megatron = actor.strategy == "megatron"
    name = "megatron" if megatron else "fsdp_config"
    engine, engine_key = actor.get(name) or {}, f"actor_rollout_ref.actor.{name}"
    # verl's deprecated key: above 1 it replaces the engine's.
    if not megatron and (older := actor.get("ulysses_sequence_parallel_size") or 1) > 1:
        engine = OmegaConf.merge(engine, {"ulysses_sequence_parallel_size": older})
    check_logits_visible(config.actor_rollout_ref.model, engine, engine_key)
    if megatron:
        check_megatron(engine, engine_key)
    parallel = engine.get("ulysses_sequence_parallel_size") or 1
    check_layout(opd, megatron=megatron, sequence_parallel=parallel > 1)
    if opd.own_prompts and (megatron or parallel > 1):
        raise UserError(
            "an exact signal aligns teacher and student token by token, so it needs whole sequences on each rank",
            key="s2d.teacher_prompt",
            value=opd.teacher_prompt,
            remedy="use FSDP without sequence parallelism, or s2d.signal.type=sampled",
        )


def _check_servers(config: DictConfig, opd: OpdConfig) -> None:
    """Raise UserError for verl settings under which servers would not answer as a colocated model does."""
    served = [role for role, model in opd.models.items() if model.servers is not None]
    if not served:
        return
    rollout = config.actor_rollout_ref.rollout
    for key, value, needed, why in (
        ("temperature", rollout.temperature, 1.0, "give log-probabilities at temperature 1 only, which"),
        ("name", rollout.name, "vllm", "are vLLM's, whose settings are taken from the student's rollout, which"),
    ):
        if value != needed:
            raise UserError(
                f"the servers of the {served[0]} {why} is not the student's",
                key=f"actor_rollout_ref.rollout.{key}",
                value=value,
                remedy=f"set it to {needed}, or {model_key(served[0])}.placement=colocated",
            )


def _check_scores(config: DictConfig, opd: OpdConfig) -> None:
    """Raise UserError for keys that do not go with a signal that reads scores or compares rollouts of a prompt."""
    if opd.parse_rate is not None and reads_scores(opd.signal):
        raise UserError(
            "the verifier scores every rollout for this signal, so no parse rate is measured",
            key="s2d.parse_rate",
            value=opd.parse_rate,
            remedy="leave it out",
        )
    number = config.actor_rollout_ref.rollout.n
    if number < 2 and GROUPS in getattr(opd.signal, "reads", ()):
        raise UserError(
            f"the signal {opd.signal.type} compares rollouts of the same prompt",
            key="actor_rollout_ref.rollout.n",
            value=number,
            remedy="set it to 2 or more, such as 8",
        )


def _check_verl(config: DictConfig) -> None:
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    if config.algorithm.adv_estimator != "s2d_opd":
        raise UserError(
            "only the signal's estimator sees the teacher: verl passes an estimator rewards, not log-probabilities",
            key="algorithm.adv_estimator",
            value=str(config.algorithm.adv_estimator),
            remedy="set algorithm.adv_estimator=s2d_opd, and write your advantage as a signal, "
            "+s2d.signal.type=file.py:Name",
        )
    check_lora(model, actor.strategy, "actor_rollout_ref.model", config.actor_rollout_ref.rollout.name)
    check_reference_is_free(config)
    if config.reward.reward_model.enable:
        raise UserError(
            "this stage asks no reward model: the teacher replaces it",
            key="reward.reward_model.enable",
            value=True,
            remedy="set reward.reward_model.enable=False",
        )
