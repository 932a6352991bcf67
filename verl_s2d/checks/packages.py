"""Check for packages that a stage on an accelerator would import only after minutes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError

FLASH_ATTN = "flash-attn==2.8.3"
"""The release that verl 0.9.1 pins in its extra `fsdp`."""
_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_VERL_DEFAULT = "flash_attention_2"
"""Default in verl's workers/config/model.py, if override_config names none."""


def check_packages(settings: Mapping[str, Mapping[str, Any]], device: str) -> list[str]:
    """Check for the packages that verl's engines import on an accelerator: flash-attn, or Megatron's.

    Args:
        settings: label -> composed configuration of every training stage (VerlProbe.stages).
        device: `cpu` or `cuda`; `cpu` needs none of them.

    Returns:
        Warnings. With RAY_ADDRESS a missing package is only a warning, because the cluster's nodes may have it.

    Raises:
        UserError: the first stage that cannot start here, with the package to install or the key to set.
    """
    warnings: list[str] = []
    if device == "cpu":
        return warnings
    for label, stage in settings.items():
        rl = "actor_rollout_ref" in stage
        root = stage["actor_rollout_ref"] if rl else stage
        engine = root["actor"] if rl else root["engine"]
        prefix = "actor_rollout_ref." if rl else ""
        try:
            # The warmup's section for Megatron does not name its strategy.
            if engine.get("strategy") in (None, "megatron"):
                _check_megatron(label, engine.get("megatron", engine), prefix + ("actor.megatron" if rl else "engine"))
            else:
                warnings += _check_attention(label, root["model"], f"{prefix}model.override_config")
        except UserError as error:
            if not os.environ.get("RAY_ADDRESS"):
                raise
            warnings.append(f"{error.problem} RAY_ADDRESS is set: only this machine was checked. {error.remedy}")
    return list(dict.fromkeys(warnings))


def missing(*modules: str) -> list[str]:
    """Return the modules that are not installed, without importing any."""
    return [name for name in modules if not _findable(name)]


def _findable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _check_attention(label: str, model: Mapping[str, Any], key: str) -> list[str]:
    chosen = (model.get("override_config") or {}).get("attn_implementation") or _VERL_DEFAULT
    module = _MODULES.get(chosen)
    if module is None or not missing(module):
        return []
    if not missing("kernels"):
        return [
            f"The module {module} is not installed: transformers takes its attention from the hub through `kernels`, "
            "and without flash-attn verl computes bf16 log-probs of packed sequences token by token."
        ]
    raise UserError(
        f"{label} would not start: it asks for {chosen}, and the module {module} is not installed.",
        key=f"{key}.attn_implementation",
        value=chosen,
        remedy=f"Install {FLASH_ATTN} (docs/install.md). Or set +{key}.attn_implementation: sdpa under the stage's "
        "`verl:`, at a cost: packed sequences then need a mask of tokens x tokens, and verl computes their bf16 "
        "log-probs token by token.",
    )


def _check_megatron(label: str, engine: Mapping[str, Any], key: str) -> None:
    bridge = "mbridge" if engine.get("vanilla_mbridge") else "megatron.bridge"
    absent = missing("megatron.core", "transformer_engine", bridge)
    if absent:
        raise UserError(
            f"{label} would not start on Megatron: not installed are the modules {', '.join(absent)}.",
            key=key,
            remedy="Install Megatron-LM's core, Transformer Engine and Megatron-Bridge (docs/install.md), or take "
            "verl's own image, which has them; or train on FSDP2.",
        )
