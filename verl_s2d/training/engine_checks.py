"""What verl's engines must not do when an objective needs the distribution over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError


def check_logits_visible(
    model: Mapping[str, Any], engine: Mapping[str, Any], engine_key: str, model_key: str = "actor_rollout_ref.model"
) -> None:
    """Check verl's model and engine sections; the keys are where they stand, for messages.

    Raises:
        UserError: a setting under which the objective would see no logits, or those of other tokens.
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
        UserError: a layout in which the teacher could not be asked in the middle of the student's forward pass, or a
            replay of routes, which would send the teacher's tokens where the student's went.
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
        ("pipeline_model_parallel_size", 1, "the teacher is asked within the student's forward pass, in one stage"),
        ("virtual_pipeline_model_parallel_size", None, "the teacher is asked in one stage"),
        ("dynamic_context_parallel", False, "verl lays its tokens out anew for every micro-batch"),
    ):
        value = engine.get(name, plain)
        if value not in (plain, None):
            raise UserError(
                f"an objective over the whole vocabulary is not there for this layout: {why}",
                key=f"{engine_key}.{name}",
                value=value,
                remedy=f"set it to {'null' if plain is None else plain}, and divide by tensor or context instead",
            )
