"""Choose the device that stages run on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import ACCELERATORS


def resolve_device(choice: str) -> str:
    """Resolve `auto` to `cpu` or `cuda` (verl's word for any accelerator) by driver files: torch would take seconds.

    Raises:
        UserError: `auto` with RAY_ADDRESS on a host without an accelerator: the cluster may have accelerators.
    """
    if choice != "auto":
        return choice
    if accelerator_here():
        return "cuda"
    if os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "This host has no accelerator, which says nothing about the nodes of the Ray cluster at RAY_ADDRESS.",
            key="cluster.device",
            value=choice,
            remedy="Set it to cuda, or to cpu for a cluster without accelerators.",
        )
    return "cpu"


def accelerator_here() -> bool:
    """Report whether this host has an accelerator's driver file, or nvidia-smi on PATH."""
    return any(Path(file).exists() for file in ACCELERATORS) or shutil.which("nvidia-smi") is not None
