"""Hand off a stage that trained a LoRA adapter: the next stage starts from merged weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from verl_s2d.arguments import plain_arguments
from verl_s2d.data.weights import safetensors_names
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node

_MERGE_SECONDS = 7200
"""Limit of a merge: time to read a model of a hundred gigabytes from a slow disk and write it again."""


def has_adapter(export: Path) -> bool:
    """Report whether a complete Hugging Face directory holds an adapter beside its weights, as verl's FSDP saves it."""
    return any(".lora_" in name for file in export.glob("*.safetensors") for name in safetensors_names(file))


def merge_adapter(node: Node, export: Path, out: Path, log: Path) -> None:
    """Write the model with its adapter merged to `out`, over the remains of an earlier attempt.

    Raises:
        StageFailed: the adapter cannot be merged.
    """
    arguments = plain_arguments({"checkpoint": str(export.parent), "out": str(out)})
    command = [sys.executable, "-m", "verl_s2d.stages.merge.merge_adapter", *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_MERGE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise StageFailed(
            f"{node.name}: merging its adapter ({export.parent}) did not end within {_MERGE_SECONDS} s.", log=log
        ) from error
    if ended.returncode != 0:
        raise StageFailed(
            f"{node.name}: its adapter cannot be merged into its weights.",
            log=log,
            lines=ended.stderr.splitlines()[-8:],
        )
