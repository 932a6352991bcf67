"""What stage 2a refuses before Ray starts."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig
from verl.workers.config import HFModelConfig

from verl_s2d.errors import UserError
from verl_s2d.signals.full_vocabulary import Objective
from verl_s2d.stages.shared.save_on_request import read_save_minutes
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts
from verl_s2d.teachers.model_pair import check_tokens, real_vocabulary
from verl_s2d.verl_settings.engine_checks import check_logits_visible, check_megatron, check_weights
from verl_s2d.verl_settings.lora_checks import check_lora

OBJECTIVES = ("forward_kl",)
# Ranks of one of these share their sequences: Ulysses on FSDP, the others on Megatron.
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
    "s2d.skip_limit",
    "trainer.total_epochs",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)


def check_settings(config: DictConfig) -> None:
    """Settings that no data or model could make right.

    Raises:
        UserError: with the key, the value and the remedy.
    """
    for key in ("model.path", "s2d.teacher.path"):
        path = OmegaConf.select(config, key)
        _require(isinstance(path, str) and path != "", "a model is missing", key, path, "set it to a checkpoint")
    _require(
        config.s2d.objective in OBJECTIVES,
        "unknown objective",
        "s2d.objective",
        config.s2d.objective,
        f"one of {list(OBJECTIVES)}",
    )
    # Only some of verl's engine sections have a strategy to override; the rest are told apart by their class.
    engine = config.engine.get("strategy") or config.engine.get("_target_")
    megatron = engine == "megatron" or str(engine).endswith(".McoreEngineConfig")
    _require(
        megatron or engine in ("fsdp", "fsdp2"),
        "the warmup knows how verl's FSDP and Megatron engines lay out tokens and logits, and no other",
        "engine.strategy",
        engine,
        "use engine.strategy=fsdp or fsdp2, or engine=megatron",
    )
    _require(
        config.trainer.device != "cpu" or engine == "fsdp2",
        "on a CPU there is neither Megatron nor FSDP1, which refuses parameters there",
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
    for key in ("trainer.total_training_steps", "s2d.chunk_tokens"):
        if OmegaConf.select(config, key) is not None:
            _require_positive(config, key)
    _require(
        isinstance(config.s2d.materialise_logits, bool),
        "not a yes or no",
        "s2d.materialise_logits",
        config.s2d.materialise_logits,
        "set it to true or false",
    )
    read_save_minutes(config)
    frequency = config.trainer.save_freq
    _require(
        frequency == "after_each_epoch" or (isinstance(frequency, int) and frequency != 0),
        "not a frequency",
        "trainer.save_freq",
        frequency,
        "give a number of steps, after_each_epoch, or -1 for the last step only",
    )
    check_logits_visible(config.model, config.engine, "engine", model_key="model")
    _check_batches(config)


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


def warmup_objective(config: DictConfig, vocab_size: int) -> Objective:
    """The objective that the settings name, over a shared vocabulary of this real size."""
    return Objective(
        config.s2d.objective,
        vocab_size,
        chunk_tokens=config.s2d.chunk_tokens,
        materialise_logits=config.s2d.materialise_logits,
    )


def check_models(config: DictConfig) -> list[str]:
    """Compare the tokenizers of teacher and student; returns what differs without being wrong.

    Raises:
        UserError: a model that cannot be read, or tokenizers that differ.
    """
    return check_tokens(
        config.model.path, config.s2d.teacher.path, student_key="model.path", teacher_key="s2d.teacher.path"
    )


def check_cache(config: DictConfig, student: HFModelConfig, rollouts: CachedRollouts) -> int:
    """Check settings and models against the cache; returns the real size of the shared vocabulary.

    Raises:
        UserError: with the key, the value and the remedy.
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
    teacher = AutoConfig.from_pretrained(
        config.s2d.teacher.path, trust_remote_code=config.s2d.teacher.trust_remote_code
    )
    models = {"s2d.teacher.path": _text(teacher), "model.path": _text(student.hf_config)}
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
