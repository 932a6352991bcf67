"""Set environment variables that torch, verl and vLLM read at import. Imports none of them."""

from __future__ import annotations

import os

CPU_ENVIRONMENT = {
    # verl: use the platform of platforms/cpu/platform.py, in processes that start before any probe could run.
    "VERL_PLATFORM": "cpu",
    # vLLM: its own probe reads a version string that only some of its processes can see.
    "VLLM_TARGET_DEVICE": "cpu",
    # GiB. The default takes half of the machine for the key-value cache of every engine.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Trainer and rollout share the cores; binding would pin both to the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
}

CUDA_ENVIRONMENT = {
    # vLLM: start its engine as a new process. CUDA does not work in a fork of a process that has called the driver.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # torch: ask NVML, not the driver, whether there is a GPU, so that processes which others fork stay able to use it.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


ACCELERATORS = {"/dev/nvidiactl": "nvidia", "/dev/kfd": "amd", "/dev/davinci_manager": "huawei"}
"""Driver file -> verl's name of the platform."""


def cpu_requested() -> bool:
    """Report whether VERL_PLATFORM asks for the platform `cpu`, read as verl reads it."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def accelerator_platform() -> str:
    """Name verl's platform for processes on accelerators: the user's VERL_PLATFORM, else by this host's driver.

    A Ray head without a driver takes verl's own fallback, nvidia.
    """
    chosen = os.environ.get("VERL_PLATFORM", "").strip()
    if chosen and not cpu_requested():
        return chosen
    return next((name for file, name in ACCELERATORS.items() if os.path.exists(file)), "nvidia")


def cpu_environment() -> dict[str, str]:
    """Return the variables for every verl and vLLM process on a machine without an accelerator."""
    # Trainer, rollout engine and agent loop overlap, and Ray would give each trainer more threads than there are cores.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // 2))
    return CPU_ENVIRONMENT | {"OMP_NUM_THREADS": threads}


def cuda_environment() -> dict[str, str]:
    """Return the variables for every process that uses an accelerator; the user's values win."""
    return {name: os.environ.get(name, value) for name, value in CUDA_ENVIRONMENT.items()}


def device_environment(device: str) -> dict[str, str]:
    """Return the variables for every process of verl and vLLM on `cpu`, or on `cuda`, any accelerator."""
    if device == "cpu":
        return cpu_environment()
    return cuda_environment() | {"VERL_PLATFORM": accelerator_platform()}


def actor_environment(device: str) -> dict[str, str]:
    """Return the variables for Ray actors, which inherit the environment of a running cluster, not the driver's."""
    return {"VERL_PLATFORM": "cpu"} if device == "cpu" else {}


def stage_environment(device: str) -> dict[str, str]:
    """Build the environment of a run's processes: this process's, and what verl, torch and vLLM need on the device."""
    # Unbuffered: a log that waits for a full buffer would make a working stage look stalled.
    return {**os.environ, "PYTHONUNBUFFERED": "1", **device_environment(device)}


def prepare_for_vllm() -> None:
    """Set this process's variables before torch or vLLM is used. Changes nothing on a CPU."""
    os.environ.update(cuda_environment())
