"""Environment variables of a machine without an accelerator. Imports neither torch nor verl."""

from __future__ import annotations

import os

CPU_ENVIRONMENT = {
    # verl: use the platform that verl_s2d.platforms.cpu registers, in processes that start before any probe could run.
    "VERL_PLATFORM": "cpu",
    # vLLM: its own probe reads a version string that only some of its processes can see.
    "VLLM_TARGET_DEVICE": "cpu",
    # GiB. The default takes half of the machine for the key-value cache of every engine.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Trainer and rollout share the cores; binding would pin both to the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
}


def cpu_environment() -> dict[str, str]:
    """Variables to set for every verl and vLLM process on a machine without an accelerator."""
    # Trainer, rollout engine and agent loop overlap, and Ray would give each trainer more threads than there are cores.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // 2))
    return CPU_ENVIRONMENT | {"OMP_NUM_THREADS": threads}
