"""Describe this machine's accelerators without torch, whose import takes seconds."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from verl_s2d.platforms.device import accelerator_here

_SECONDS = 20
_USUAL_GB = 80


@dataclass(frozen=True)
class Machine:
    """GPUs that a recipe is written for; none: the CPU."""

    gpus: int
    gpu_memory_gb: int = _USUAL_GB
    """GiB of the smallest GPU; that of a usual one where no GPU says it."""

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def this_machine(gpus: int | None = None) -> Machine:
    """Count the GPUs and read their memory from nvidia-smi.

    Args:
        gpus: the number to write the recipe for, also where there are none; None: those of this machine.
    """
    found = _memories()
    count = (len(found) or int(accelerator_here())) if gpus is None else gpus
    return Machine(count, min(found, default=_USUAL_GB))


def _memories() -> list[int]:
    """Return the memory of every GPU in GiB; empty without nvidia-smi or where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    numbers = [line.strip() for line in done.stdout.splitlines()]
    return [round(int(number) / 1024) for number in numbers if number.isdigit()] if done.returncode == 0 else []
