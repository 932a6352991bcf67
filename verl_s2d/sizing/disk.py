"""Estimate the bytes that stages write: checkpoints during training, and results that stay.

FSDP checkpoints hold every parameter in its training dtype (fp32 if trained), Adam's two moments of each trained
parameter, and an export for the next stage: 16 bytes per parameter without adapters. Megatron's hold 12 bytes per
trained parameter (fp32 weights and moments) and a bf16 export. Samples take at most about 4 bytes per token: 32-bit ids
in a cache of rollouts, text in an evaluation.
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
        checkpoint: bytes of one checkpoint; 0 for a stage that does not train.
        kept: maximum number of checkpoints at a time.
        result: bytes that stay for later stages and the report.
    """

    checkpoint: float
    kept: int
    result: float


def training_disk(node: Node, settings: Mapping[str, Any], training: Training, shape: ModelShape) -> StageDisk | None:
    """Estimate a training stage's disk space; None if its number of steps is unknown.

    Args:
        settings: composed configuration of the stage.
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
        # A stage that keeps all checkpoints saves by steps only.
        return StageDisk(checkpoint, -(-steps // node.operations["save_every"]), export)
    return StageDisk(checkpoint, min(keep, steps), export)


def sampling_disk(sampled_tokens: int, prompt: int, response: int, log_probs: int = 0) -> StageDisk:
    """Estimate a sampling stage's disk space from the bound on its tokens and the lengths of prompt and response.

    Args:
        log_probs: likely tokens stored beside each sampled one, an id and a log-prob of 4 bytes each.
    """
    plain = _TOKEN_BYTES * sampled_tokens * (prompt + response) / response
    return StageDisk(0, 0, plain + 8 * log_probs * sampled_tokens)


def run_disk(stages: Iterable[StageDisk]) -> tuple[float, float]:
    """Compute (peak bytes, final bytes) of stages that run one after the other."""
    most = left = 0.0
    for stage in stages:
        # The result is the last checkpoint's export, moved and not copied.
        most = max(most, left + max(stage.checkpoint * stage.kept, stage.result))
        left += stage.result
    return most, left
