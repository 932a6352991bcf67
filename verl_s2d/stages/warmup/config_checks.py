"""Read the settings of stage 2a, and refuse those that cannot work before Ray starts."""

from __future__ import annotations

from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig
from verl.workers.config import HFModelConfig

from verl_s2d.errors import UserError
from verl_s2d.recipe.until import DIVERGENCE, Until
from verl_s2d.signals.signal import Ask, LossSignal
from verl_s2d.signals.signal_registry import types_of
from verl_s2d.signals.top_k_kl import STORED
from verl_s2d.stages.ending.until_config import read_warmup_until
from verl_s2d.stages.shared import distillation
from verl_s2d.stages.shared.distillation import Distillation, check_layout, model_key, read_distillation
from verl_s2d.stages.shared.save_on_request import read_save_minutes
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts
from verl_s2d.teachers.model_pair import real_vocabulary
from verl_s2d.verl_settings.engine_checks import check_logits_visible, check_megatron, check_weights
from verl_s2d.verl_settings.lora_checks import check_lora

# Parallel sizes whose ranks share sequences: Ulysses on FSDP, the others on Megatron.
_PARALLEL_SIZES = (
    "ulysses_sequence_parallel_size",
    "tensor_model_parallel_size",
    "context_parallel_size",
    "pipeline_model_parallel_size",
)
_POSITIVE = (
    "data.train_batch_size",
    "data.micro_batch_size_per_gpu",
    "data.max_token_len_per_gpu",
    "trainer.total_epochs",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)


class WarmupConfig(Distillation):
    """Settings of the warmup, the section `s2d`. The cache of rollouts answers for a teacher that is asked for TOP_K.

    Attributes:
        save_minutes: minutes without a checkpoint after which to save, besides every trainer.save_freq steps; null: by
            steps only.
        until: a plateau of the divergence that ends training, with a checkpoint; null: none.
    """

    stored: ClassVar[tuple[Ask, ...]] = STORED
    save_minutes: float | None = None
    until: Until | None = None

    @property
    def measured(self) -> dict[str, str]:
        """Map what the trainer measures for `until` -> its metric: the divergence is the one that is minimised."""
        return {DIVERGENCE: f"train/{self.signal.objective}"}


def read_warmup_settings(section: Any) -> WarmupConfig:
    """Read the section `s2d`.

    Raises:
        UserError: a missing or unknown key, a key without effect, or a signal that is not a loss.
    """
    settings = read_distillation(WarmupConfig, section, signal="forward_kl")
    _require(
        settings.is_loss,
        "an advantage holds for tokens that the student sampled, and this stage trains on the teacher's",
        "s2d.signal.type",
        settings.signal.type,
        f"use a loss over the whole vocabulary: {', '.join(types_of(LossSignal))}",
    )
    return settings


def check_settings(config: DictConfig) -> WarmupConfig:
    """Check the settings that depend on neither data nor models; return those of `s2d`.

    Raises:
        UserError: a setting that cannot work.
    """
    path = config.model.path
    _require(isinstance(path, str) and path != "", "a model is missing", "model.path", path, "set it to a checkpoint")
    settings = read_warmup_settings(config.s2d)
    # Only some of verl's engine sections have a strategy; the class identifies the others.
    engine = config.engine.get("strategy") or config.engine.get("_target_")
    megatron = engine == "megatron" or str(engine).endswith(".McoreEngineConfig")
    _require(
        megatron or engine in ("fsdp", "fsdp2"),
        "the warmup supports verl's FSDP and Megatron engines only",
        "engine.strategy",
        engine,
        "use engine.strategy=fsdp or fsdp2, or engine=megatron",
    )
    _require(
        config.trainer.device != "cpu" or engine == "fsdp2",
        "Megatron and FSDP1 do not run on a CPU",
        "engine.strategy",
        engine,
        "set engine.strategy=fsdp2",
    )
    if megatron:
        check_megatron(config.engine, "engine")
        check_weights(config.engine, "engine")
    check_lora(config.model, "megatron" if megatron else engine, "model")
    for key in _POSITIVE:
        _require_positive(config, key)
    if config.trainer.total_training_steps is not None:
        _require_positive(config, "trainer.total_training_steps")
    read_save_minutes(config)
    read_warmup_until(config, settings.measured)
    frequency = config.trainer.save_freq
    _require(
        frequency == "after_each_epoch" or (isinstance(frequency, int) and frequency != 0),
        "not a frequency",
        "trainer.save_freq",
        frequency,
        "give a number of steps, after_each_epoch, or -1 for the last step only",
    )
    check_logits_visible(config.model, config.engine, "engine", model_key="model")
    parallel = config.engine.get("ulysses_sequence_parallel_size") or 1
    check_layout(settings, megatron=megatron, sequence_parallel=parallel > 1)
    _check_batches(config)
    return settings


def _check_batches(config: DictConfig) -> None:
    world = config.trainer.n_gpus_per_node * config.trainer.nnodes
    engine, parallel = config.engine, 1
    for name in _PARALLEL_SIZES:
        size = engine.get(name) or 1
        parallel *= size
        _require(
            isinstance(size, int) and size > 0 and world % parallel == 0,
            f"{world} ranks are not a whole number of groups that work on the same sequences",
            f"engine.{name}",
            size,
            f"choose sizes whose product divides {world}",
        )
    ranks, batch, micro = world // parallel, config.data.train_batch_size, config.data.micro_batch_size_per_gpu
    _require(
        batch % ranks == 0,
        f"the batch does not divide over {ranks} data-parallel ranks",
        "data.train_batch_size",
        batch,
        f"use a multiple of {ranks}",
    )
    _require(
        config.data.use_dynamic_bsz or batch // ranks % micro == 0,
        f"the {batch // ranks} rollouts of a rank are not a whole number of micro-batches",
        "data.micro_batch_size_per_gpu",
        micro,
        f"choose a divisor of {batch // ranks}, or set data.use_dynamic_bsz=True",
    )


def check_models(config: DictConfig) -> list[str]:
    """Compare the tokenizers of the frozen models and the student; return harmless differences.

    Raises:
        UserError: a model that cannot be read, or tokenizers that differ.
    """
    return distillation.check_models(config.model.path, read_warmup_settings(config.s2d), student_key="model.path")


def check_cache(config: DictConfig, student: HFModelConfig, rollouts: CachedRollouts) -> int:
    """Check settings and models against the cache; return the size of the shared vocabulary without padding.

    Raises:
        UserError: the cache does not fit the settings or the models.
    """
    batch = config.data.train_batch_size
    _require(
        batch <= len(rollouts),
        f"the batch is larger than the cache of {len(rollouts)} rollouts",
        "data.train_batch_size",
        batch,
        f"use at most {len(rollouts)}, or sample more rollouts",
    )
    sequence_parallel = 1
    for name in ("ulysses_sequence_parallel_size", "context_parallel_size"):
        sequence_parallel *= config.engine.get(name) or 1
    budget = config.data.max_token_len_per_gpu * sequence_parallel
    _require(
        not config.data.use_dynamic_bsz or rollouts.longest <= budget,
        f"a cached rollout has {rollouts.longest} tokens, more than a micro-batch may have",
        "data.max_token_len_per_gpu",
        config.data.max_token_len_per_gpu,
        f"give at least {-(-rollouts.longest // sequence_parallel)}",
    )
    models = {}
    for role, frozen in read_warmup_settings(config.s2d).models.items():
        found = AutoConfig.from_pretrained(
            frozen.path, revision=frozen.revision or "main", trust_remote_code=frozen.trust_remote_code
        )
        models[f"{model_key(role)}.path"] = _text(found)
    models["model.path"] = _text(student.hf_config)
    for key, model in models.items():
        _require(
            rollouts.largest_id < model.vocab_size,
            f"the cache uses token id {rollouts.largest_id}, beyond the model's vocabulary of {model.vocab_size}",
            key,
            OmegaConf.select(config, key),
            "teacher and student must share the tokenizer that the cache was sampled with",
        )
        context = getattr(model, "max_position_embeddings", None)
        _require(
            context is None or rollouts.longest <= context,
            f"a cached rollout has {rollouts.longest} tokens, more than the model's context of {context}",
            key,
            OmegaConf.select(config, key),
            "sample the cache again with a smaller max_tokens",
        )
    return real_vocabulary(student.tokenizer, *models.values())


def _require(fits: bool, problem: str, key: str, value: Any, remedy: str) -> None:
    if not fits:
        raise UserError(problem, key=key, value=value, remedy=remedy)


def _require_positive(config: DictConfig, key: str) -> None:
    value = OmegaConf.select(config, key)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    _require(is_whole and value > 0, "not a positive whole number", key, value, "give one")


def _text(config):
    return config.get_text_config() if hasattr(config, "get_text_config") else config
