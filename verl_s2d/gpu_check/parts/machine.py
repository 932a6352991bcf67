"""Check part `machine`: hardware, driver and installed software, before anything is loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand, default_storage_units

GIB = 2**30
_SHM_GIB, _GPU_GIB, _SMI_SECONDS = 8, 16, 10
"""/dev/shm carries tensors between processes of Ray and vLLM. nvidia-smi: the time limit of verl's own probe."""
_PINNED = {"torch": "2.11.0", "vllm": "0.24.0", "transformers": "5.9.0"}
"""Versions that verl 0.9.1 pins; others are reported, not refused."""


def run(settings: Settings, record: Recorder) -> None:
    """Check GPU, CPUs, memory, disk, compiler, versions and flash-attn."""
    if settings.on_cpu:
        record.skip("GPU", "needs a GPU")
        gpus = 0
    else:
        gpus = _gpus(record)
    _host(settings, record, gpus)
    _compiler(record)
    _versions(record)
    if settings.on_cpu:
        record.skip("flash-attn", "needs a GPU")
    else:
        _flash_attention(record)


def _gpus(record: Recorder) -> int:
    """Record every GPU that torch sees; returns their number."""
    import torch

    _nvidia_smi(record)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    record.figure("torch.version.cuda", torch.version.cuda or torch.version.hip or "none: a build for CPUs")
    record.at_least("GPUs that torch sees", count, 1)
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        record.figure(f"GPU {index}", f"{facts.name}, compute capability {facts.major}.{facts.minor}")
        record.at_least(f"GPU {index} memory", total / GIB, _GPU_GIB, "GiB")
        record.figure(f"GPU {index} free memory", free / GIB, "GiB")
        record.expect(f"GPU {index} bf16", facts.major >= 8, f"{facts.major}.{facts.minor}", "capability >= 8.0")
    if count:
        record.figure("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    return count


def _nvidia_smi(record: Recorder) -> None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    began = time.monotonic()
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        record.expect("nvidia-smi", False, error, "answers")
        return
    record.at_most("nvidia-smi", time.monotonic() - began, _SMI_SECONDS, "s")
    record.figure("driver", answer[0] if answer else "unknown")


def _host(settings: Settings, record: Recorder, gpus: int) -> None:
    cpus = len(os.sched_getaffinity(0))
    units = default_storage_units(1)
    held = Demand(1, max(1, gpus), cpus_per_worker=RL_CPUS_PER_WORKER, storage_units=units).cpus(units)
    # No limit: our own Ray head offers enough logical CPUs; on an external cluster `check` and the stages check them.
    record.figure("CPUs", f"{cpus}; verl holds {held} of Ray's for each stage that samples and trains")
    record.figure("host memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "GiB")
    shared = Path("/dev/shm")
    size = shutil.disk_usage(shared).total / GIB if shared.exists() else 0.0
    if settings.on_cpu:
        record.figure("/dev/shm", size, "GiB")
    else:
        record.at_least("/dev/shm", size, _SHM_GIB, "GiB")
    record.figure("free disk here", shutil.disk_usage(settings.scratch).free / GIB, "GiB")


def _compiler(record: Recorder) -> None:
    """Check for a C compiler and Python.h, which Inductor and Triton need at run time."""
    compiler = next((found for name in ("gcc", "cc", "clang") if (found := shutil.which(name))), None)
    record.expect("C compiler", compiler is not None, compiler or "none on PATH", "gcc, cc or clang")
    header = Path(sysconfig.get_path("include"), "Python.h")
    record.expect("Python.h", header.exists(), header if header.exists() else f"not at {header}", "exists")


def _versions(record: Recorder) -> None:
    for name, pinned in _PINNED.items():
        found = next((version for n in (name, f"{name}-cpu") if (version := _version(n))), None)
        record.figure(f"{name} (verl pins {pinned})", found or "not installed")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _flash_attention(record: Recorder) -> None:
    """Compare two packed sequences in flash-attn with torch's own attention on each sequence."""
    if importlib.util.find_spec("flash_attn") is None:
        record.expect("flash-attn", False, "not installed", "importable")
        return
    import torch
    from flash_attn import flash_attn_varlen_func

    record.figure("flash-attn", _version("flash-attn") or "unknown version")
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = (37, 91)
    make = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    q, k, v = (torch.randn(sum(lengths), 4, 64, **make) for _ in range(3))
    starts = torch.tensor([0, lengths[0], sum(lengths)], device="cuda", dtype=torch.int32)
    packed = flash_attn_varlen_func(q, k, v, starts, starts, max(lengths), max(lengths), causal=True)
    difference = 0.0
    for begin, end in ((0, lengths[0]), (lengths[0], sum(lengths))):
        alone = torch.nn.functional.scaled_dot_product_attention(
            *(x[begin:end].float().transpose(0, 1)[None] for x in (q, k, v)), is_causal=True
        )
        difference = max(difference, (packed[begin:end].float() - alone[0].transpose(0, 1)).abs().max().item())
    record.at_most("flash-attn against sdpa", difference, 2e-2)
