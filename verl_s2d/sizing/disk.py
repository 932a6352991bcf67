"""Bytes that the stages of a run write: checkpoints while a stage trains, and what stays when it has ended.

FSDP checkpoints hold each parameter in the dtype it is kept in (fp32 for what is trained), twice that for Adam's
moments of the trained ones, and an export in the kept dtype for the next stage: 16 bytes a parameter without adapters.
Megatron's hold 12 bytes a trained parameter (fp32 weights and moments) and a bf16 export. Samples are at most about 4
bytes a token: 32-bit ids in a cache of rollouts, text in an evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_s2d.sizing.engine_memory import trained_parameters
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Training
from verl_s2d.workflow.graph import Node

_TOKEN_BYTES = 4


@dataclass(frozen=True)
class StageDisk:
    """Bytes of one stage.

    Attributes:
        checkpoint: of one; 0 for a stage that trains nothing.
        kept: most checkpoints at a time.
        result: what stays for later stages and the report.
    """

    checkpoint: float
    kept: int
    result: float


def training_disk(node: Node, settings: Mapping[str, Any], training: Training, shape: ModelShape) -> StageDisk | None:
    """Count a stage that trains; None where its number of steps is not known yet.

    Args:
        settings: its composed configuration.
    """
    engine = training.actor
    trained = trained_parameters(shape, engine)
    if engine.backend == "megatron":
        export, checkpoint = 2 * shape.parameters, 12 * trained + 2 * shape.parameters
    else:
        adapters = trained if engine.lora_rank else 0
        export = engine.held_bytes * shape.parameters
        checkpoint = engine.held_bytes * (shape.parameters + adapters + 2 * trained) + export
    section, _, name = node.stage.keep_key.partition(".")
    keep = settings[section][name]
    steps = node.settings["steps"]
    if steps is None:
        return None if keep is None else StageDisk(checkpoint, keep, export)
    if keep is None:
        # Such a stage saves by steps alone.
        return StageDisk(checkpoint, -(-steps // node.operations["save_every"]), export)
    return StageDisk(checkpoint, min(keep, steps), export)


def sampling_disk(sampled_tokens: int, prompt: int, response: int) -> StageDisk:
    """Count a stage that only samples, from its response tokens at most and the lengths of prompts and responses."""
    return StageDisk(0, 0, _TOKEN_BYTES * sampled_tokens * (prompt + response) / response)


def run_disk(stages: Iterable[StageDisk]) -> tuple[float, float]:
    """(most bytes at a time, bytes at the end) of stages that run one after the other."""
    most = left = 0.0
    for stage in stages:
        # The export is moved out of the last checkpoint, not copied.
        most = max(most, left + max(stage.checkpoint * stage.kept, stage.result))
        left += stage.result
    return most, left
