"""Refuse engine settings that hide the distribution over the whole vocabulary from an objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError


def check_logits_visible(
    model: Mapping[str, Any], engine: Mapping[str, Any], engine_key: str, model_key: str = "actor_rollout_ref.model"
) -> None:
    """Check verl's model and engine sections; the keys name the sections in messages.

    Raises:
        UserError: a setting under which the objective would see no logits, or logits of other tokens.
    """
    if model.get("use_fused_kernels"):
        raise UserError(
            "fused kernels never show the logits that the objective needs",
            key=f"{model_key}.use_fused_kernels",
            value=True,
            remedy=f"set {model_key}.use_fused_kernels=False",
        )
    if engine.get("pad_to_length"):
        raise UserError(
            "verl pads packed batches only without a distillation objective",
            key=f"{engine_key}.pad_to_length",
            value=True,
            remedy=f"set {engine_key}.pad_to_length=False",
        )
    attention = (model.get("override_config") or {}).get("attn_implementation", "flash_attention_2")
    parallel = engine.get("ulysses_sequence_parallel_size") or 1
    if parallel > 1 and not attention.startswith("flash"):
        raise UserError(
            f"verl exchanges heads between sequence-parallel ranks in flash attention only; with {attention} each rank "
            "would attend to its own part of the sequence",
            key=f"{engine_key}.ulysses_sequence_parallel_size",
            value=parallel,
            remedy="set it to 1, or use flash attention",
        )


def check_megatron(engine: Mapping[str, Any], engine_key: str) -> None:
    """Check verl's Megatron section.

    Raises:
        UserError: a layout in which teacher and student hold different tokens, or a replay of the student's expert
            routes, which the teacher would follow, too.
    """
    replay = (engine.get("router_replay") or {}).get("mode", "disabled")
    if replay != "disabled":
        raise UserError(
            "verl would replay the student's routes in the teacher too",
            key=f"{engine_key}.router_replay.mode",
            value=replay,
            remedy="set it to disabled",
        )
    for name, plain, why in (
        ("virtual_pipeline_model_parallel_size", None, "a rank's logits are those of one stage"),
        ("dynamic_context_parallel", False, "verl lays its tokens out anew for every micro-batch"),
    ):
        value = engine.get(name, plain)
        if value not in (plain, None):
            raise UserError(
                f"full-vocabulary objectives do not support this layout: {why}",
                key=f"{engine_key}.{name}",
                value=value,
                remedy=f"set it to {'null' if plain is None else plain}",
            )


def check_weights(engine: Mapping[str, Any], engine_key: str) -> None:
    """Check verl's section of a Megatron engine whose model is given by path.

    Raises:
        UserError: verl would load other weights.
    """
    if engine.get("use_dist_checkpointing"):
        raise UserError(
            "verl would load the weights in dist_checkpointing_path in place of the model this stage is given",
            key=f"{engine_key}.use_dist_checkpointing",
            value=True,
            remedy="set it to false: weights are then read and written as Hugging Face's by Megatron-Bridge; optimizer "
            "and random states are distributed checkpoints either way",
        )
