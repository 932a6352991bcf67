"""Check the arguments of vLLM's engine in a recipe (`engine:`), and tell which of them decide the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.validation import Refused, join

_MODEL = "Leave it out: which model is sampled from, and its tokenizer, follow from the stage."
_GPUS = "Set tensor_parallel_size beside `engine:`. An engine is on one node, which has as many as its GPUs hold."
_SAMPLES = "Leave it out: the samples are token ids, and nothing else is read."

COMPUTED = {
    "model": _MODEL,
    "model_weights": _MODEL,
    "served_model_name": _MODEL,
    "tokenizer": _MODEL,
    "tokenizer_mode": _MODEL,
    "skip_tokenizer_init": _MODEL,
    "runner": _MODEL,
    "convert": _MODEL,
    "revision": "Set `revision:` under `student:` or `teacher:`.",
    "code_revision": "Set `revision:` under `student:` or `teacher:`.",
    "tokenizer_revision": "Set `revision:` under `student:` or `teacher:`.",
    "trust_remote_code": "Set `trust_remote_code: true` under `student:` or `teacher:`, whose code it is.",
    "seed": "Set `seeds:` of the recipe.",
    "max_model_len": "Leave it out: it is the longest prompt plus the limit of a response.",
    "load_format": "Leave it out: only safetensors are loaded, because other files can bring code.",
    "worker_cls": "Leave it out: vLLM's own worker carries the guard of the vocabulary.",
    "worker_extension_cls": "Leave it out: the guard of the vocabulary is there.",
    "enable_chunked_prefill": "Leave it out: on a CPU seeded samples need it off, on a GPU it is on.",
    "logprobs_mode": _SAMPLES,
    "max_logprobs": _SAMPLES,
    "tensor_parallel_size": _GPUS,
    "pipeline_parallel_size": _GPUS,
    "data_parallel_size": _GPUS,
    "prefill_context_parallel_size": _GPUS,
    "decode_context_parallel_size": _GPUS,
    "distributed_executor_backend": _GPUS,
    "device_ids": _GPUS,
    "nnodes": _GPUS,
    "node_rank": _GPUS,
}
"""vLLM's arguments that follow from other settings -> remedy."""

OPERATIONAL = frozenset(
    {
        "block_size",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_timeout_seconds",
        "download_dir",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_cudagraph_capture_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "safetensors_load_strategy",
    }
)
"""Arguments that do not change the samples, up to rounding, and therefore rebuild nothing. In doubt an argument is not
listed here. dtype, quantization and kv_cache_dtype change the logits, so they decide the samples."""

_AT_LEAST_ONE = ("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes")


def check_engine(engine: Mapping[str, Any], key: str = "") -> None:
    """Refuse arguments that no version of vLLM may be given here.

    Args:
        engine: argument of vLLM's LLM -> value.
        key: dotted key of `engine`, for messages; empty in a validator.

    Raises:
        Refused: an argument that is computed, or a value out of its range.
    """
    for name, value in engine.items():
        if name in COMPUTED:
            raise Refused("This argument of vLLM is computed.", key=join(key, name), value=value, remedy=COMPUTED[name])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "gpu_memory_utilization" and not (number and 0 < value <= 1):
            raise Refused(
                "Not a share of a GPU's memory.", key=join(key, name), value=value, remedy="Above 0, at most 1."
            )
        if name in _AT_LEAST_ONE and not (number and isinstance(value, int) and value >= 1):
            raise Refused("The value is too small.", key=join(key, name), value=value, remedy="An integer from 1 on.")


def split_engine(engine: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split into the arguments that decide the samples and those that do not."""
    decisive = {name: value for name, value in engine.items() if name not in OPERATIONAL}
    return decisive, {name: value for name, value in engine.items() if name in OPERATIONAL}
