"""What stage 2a refuses before Ray starts."""

from __future__ import annotations

from omegaconf import DictConfig
from transformers import AutoConfig
from verl.workers.config import HFModelConfig

from verl_s2d.errors import UserError
from verl_s2d.training.warmup_data import CachedRollouts

OBJECTIVES = ("forward_kl",)


def check_settings(config: DictConfig) -> None:
    """Settings that no data or model could make right.

    Raises:
        UserError: with the key, the value and the remedy.
    """
    if not config.s2d.teacher.path:
        raise UserError(
            "the warmup needs a teacher",
            key="s2d.teacher.path",
            value=config.s2d.teacher.path,
            remedy="set it to a checkpoint directory or hub id",
        )
    if config.s2d.objective not in OBJECTIVES:
        raise UserError(
            "unknown objective", key="s2d.objective", value=config.s2d.objective, remedy=f"one of {list(OBJECTIVES)}"
        )
    if config.engine.strategy not in ("fsdp", "fsdp2"):
        raise UserError(
            "this engine hands out vocabulary-sharded logits, whose forward KL is not in this release",
            key="engine.strategy",
            value=config.engine.strategy,
            remedy="use engine.strategy=fsdp or fsdp2 for the warmup",
        )
    if config.model.use_fused_kernels:
        raise UserError(
            "fused kernels never show the logits that the objective needs",
            key="model.use_fused_kernels",
            value=True,
            remedy="set model.use_fused_kernels=False",
        )
    attention = config.model.override_config.get("attn_implementation", "flash_attention_2")
    if config.engine.ulysses_sequence_parallel_size > 1 and not attention.startswith("flash"):
        raise UserError(
            f"verl exchanges heads between sequence-parallel ranks in flash attention only; with {attention} each rank "
            "would attend to its own part of the sequence",
            key="engine.ulysses_sequence_parallel_size",
            value=config.engine.ulysses_sequence_parallel_size,
            remedy="set it to 1, or use flash attention",
        )
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes // config.engine.ulysses_sequence_parallel_size
    if config.data.train_batch_size % ranks:
        raise UserError(
            f"the batch does not divide over {ranks} data-parallel ranks",
            key="data.train_batch_size",
            value=config.data.train_batch_size,
            remedy=f"use a multiple of {ranks}",
        )


def check_warmup(config: DictConfig, student: HFModelConfig, rollouts: CachedRollouts) -> int:
    """Check models against the cache; returns the real size of the shared vocabulary.

    Raises:
        UserError: with the key, the value and the remedy.
    """
    batch = config.data.train_batch_size
    if batch > len(rollouts):
        raise UserError(
            f"the batch is larger than the cache of {len(rollouts)} rollouts",
            key="data.train_batch_size",
            value=batch,
            remedy=f"use at most {len(rollouts)}, or sample more rollouts",
        )
    teacher = AutoConfig.from_pretrained(
        config.s2d.teacher.path, trust_remote_code=config.s2d.teacher.trust_remote_code
    )
    sizes = {"s2d.teacher.path": _text(teacher), "model.path": _text(student.hf_config)}
    for key, model in sizes.items():
        if rollouts.largest_id >= model.vocab_size:
            raise UserError(
                f"the cache uses token id {rollouts.largest_id}, beyond the model's vocabulary of {model.vocab_size}",
                key=key,
                value=config.s2d.teacher.path if key == "s2d.teacher.path" else config.model.path,
                remedy="teacher and student must share the tokenizer that the cache was sampled with",
            )
        context = getattr(model, "max_position_embeddings", None)
        if context is not None and rollouts.longest > context:
            raise UserError(
                f"a cached rollout has {rollouts.longest} tokens, more than the model's context of {context}",
                key=key,
                value=context,
                remedy="sample the cache again with a smaller max_tokens",
            )
    # Rows beyond the tokenizer are padding of the embedding: no token, no probability.
    return min(len(student.tokenizer), *(model.vocab_size for model in sizes.values()))


def _text(config):
    return config.get_text_config() if hasattr(config, "get_text_config") else config
