"""Shrink verl's dotted keys: batches, parallel sizes, helpers and memory; on a CPU FSDP2 replaces Megatron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BATCH, PART, GROUP, MICRO_BATCH = 8, 4, 8, 4
"""Prompts per batch, prompts per mini-batch if smaller, responses per prompt, sequences per micro-batch."""

LEARNING_RATE = 1e-3
"""The published 1e-6 would not change a tiny model visibly in two steps."""

_DROPPED = (
    *("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "max_model_len"),
    *("kv_cache_memory_bytes", "fsdp_size", "val_batch_size", "gen_batch_size"),
)
_HELPERS = ("num_workers", "num_data_storage_units")


def small_verl(keys: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return the keys of one stage at tiny size.

    Args:
        keys: dotted key -> value, as under `verl:`.
        device: `cpu` or `cuda`.
    """
    megatron = "megatron" in (keys.get("model_engine"), keys.get("engine"))
    if megatron and device == "cpu":
        keys = {key: value for key, value in keys.items() if not _of_megatron(key)}
    batch = keys.get("data.train_batch_size")
    small = {}
    for key, value in keys.items():
        last = key.rpartition(".")[2]
        if last in _DROPPED:
            continue
        small[key] = _small(last, value, batch)
    return small


def _small(name: str, value: Any, batch: int | None) -> Any:
    """Return the value of the key whose last part is `name`; batch: prompts of the full batch."""
    if name in ("train_batch_size", "ppo_mini_batch_size") and not isinstance(value, int):
        return value  # an interpolation
    if name == "train_batch_size":
        return min(BATCH, value)
    if name == "ppo_mini_batch_size":
        return min(BATCH if value == batch else PART, value)
    if name == "lr":
        return LEARNING_RATE
    if name.endswith("_parallel_size") or name in _HELPERS:
        return 1
    for end, most in (("micro_batch_size", MICRO_BATCH), ("micro_batch_size_per_gpu", MICRO_BATCH), ("n", GROUP)):
        if (name == end or name.endswith(f"_{end}")) and isinstance(value, int):
            return min(most, value)
    return value


def _of_megatron(key: str) -> bool:
    return ".megatron." in key or key in ("model_engine", "engine", "optim") or key.startswith("engine.")
