"""Refuse verl's LoRA settings that the stages do not support, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError


def check_lora(model: Mapping[str, Any], strategy: str, model_key: str, rollout: str | None = None) -> None:
    """Check the LoRA keys of verl's model section; a model without LoRA passes.

    Args:
        strategy: the training engine's strategy, fsdp2 or another.
        model_key: dotted key of the section, for messages.
        rollout: name of the engine that samples from the student; None without sampling.

    Raises:
        UserError: a setting that would train another model, would be lost at the hand-off to the next stage, or is not
            supported by the installed vLLM.
    """
    rank, section = model.get("lora_rank") or 0, model.get("lora") or {}
    other_rank, merge = section.get("rank") or 0, section.get("merge", False)
    if model.get("lora_adapter_path"):
        raise _refusal(
            "a stage starts from a model, not from an adapter",
            f"{model_key}.lora_adapter_path",
            model["lora_adapter_path"],
            "merge the adapter into the model (peft's merge_and_unload) and start from that",
        )
    if not str(strategy).startswith("fsdp"):
        for key, value in (("lora_rank", rank), ("lora.rank", other_rank)):
            if value:
                raise _refusal(
                    "LoRA is supported with verl's FSDP engine only",
                    f"{model_key}.{key}",
                    value,
                    "set it to 0, or use FSDP",
                )
        return
    if other_rank:
        raise _refusal(
            "verl's FSDP engine does not read this key and would train the whole model",
            f"{model_key}.lora.rank",
            other_rank,
            f"set {model_key}.lora_rank instead",
        )
    if not isinstance(rank, int) or rank < 0:
        raise _refusal("not a rank", f"{model_key}.lora_rank", rank, "give a whole number, 0 for no LoRA")
    if rank == 0:
        return
    alpha = model.get("lora_alpha")
    if not isinstance(alpha, int) or isinstance(alpha, bool) or alpha < 1:
        raise _refusal(
            "the adapter is scaled by lora_alpha / lora_rank, so this value has no effect or the opposite one",
            f"{model_key}.lora_alpha",
            alpha,
            "give a whole number above 0",
        )
    if model.get("target_parameters"):
        raise _refusal(
            "only adapters of linear layers can be merged at the end of a stage",
            f"{model_key}.target_parameters",
            model["target_parameters"],
            "leave it out, and name linear layers in target_modules",
        )
    if rollout == "vllm" and not merge and not _vllm_takes_adapters():
        raise _refusal(
            "verl cannot hand adapters to the installed vLLM",
            f"{model_key}.lora.merge",
            merge,
            "set it to True: the rollouts then come from the merged weights",
        )


def _vllm_takes_adapters() -> bool:
    """Report whether verl's adapter loader works with the installed vLLM: 0.30 removed a method that it calls."""
    from verl.utils.vllm.utils import is_version_ge
    from vllm.model_executor.models.utils import WeightsMapper

    return not is_version_ge(minver="0.25.0") or hasattr(WeightsMapper, "get_unstacked_mapper")


def _refusal(problem: str, key: str, value: Any, remedy: str) -> UserError:
    return UserError(problem, key=key, value=value, remedy=remedy)
