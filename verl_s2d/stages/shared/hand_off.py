"""Hand off the export in a stage's last checkpoint as its result, and choose how many checkpoints verl keeps."""

from __future__ import annotations

import os
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.stages.merge.adapters import has_adapter, merge_adapter
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.verl_settings.overrides import bare_key, value_of
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import require_export
from verl_s2d.workflow.store.checkpoints import completed_step

_KEPT = 2
"""The newest checkpoint, and one more as a fallback when the newest is damaged."""
_EXPORTS = ("actor/huggingface", "actor/model/huggingface", "huggingface", "model/huggingface")
"""Directories of the Hugging Face weights in FSDP and Megatron checkpoints, of verl's RL trainer and of the warmup."""


def kept(node: Node, key: str) -> int | None:
    """Choose how many checkpoints verl keeps while a stage trains: the recipe's number, by default two.

    Args:
        key: verl's name of the number.

    Returns:
        The number; None (all) where an alarm may stop the stage, whose result may then be any older checkpoint.

    Raises:
        UserError: a number below two: verl deletes a checkpoint before its successor is complete.
    """
    chosen = merged_verl(node)
    if key not in map(bare_key, chosen):
        return None if "stopped_by" in node.settings else _KEPT
    limit = value_of(chosen, key)
    if limit is not None and (not isinstance(limit, int) or limit < _KEPT):
        raise UserError(
            f"{node.name}: verl deletes a checkpoint before its successor can be resumed from.",
            key=key,
            value=limit,
            remedy=f"At least {_KEPT}, or null to keep all.",
        )
    return limit


def find_export(checkpoints: Path, step: int) -> Path | None:
    """Locate the Hugging Face directory in the checkpoint of `step`."""
    for name in _EXPORTS:
        path = checkpoints / f"global_step_{step}" / name
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return path
    return None


def hand_off(node: Node, directory: Path, steps: int, *, earlier: bool = False, to: str = "model") -> None:
    """Verify the export of the last step and move it to <stage>/<to>, with a LoRA adapter merged. Safe to repeat.

    Args:
        steps: the last step.
        earlier: `steps` is an earlier step, chosen among the complete ones.

    Raises:
        StageFailed: the last step was not reached, or its export is incomplete.
    """
    model, checkpoints, log = directory / to, directory / "checkpoints", directory / "log.txt"
    if not model.is_dir():
        step = steps if earlier else completed_step(checkpoints)
        if step != steps:
            raise StageFailed(f"{node.name} ended at step {step or 0} of {steps}.", log=log)
        export = find_export(checkpoints, step)
        if export is None:
            raise StageFailed(f"{node.name} saved no Hugging Face weights at step {step}.", log=log)
        require_export(node, export)
        if has_adapter(export):
            merged = directory / "model.merged"
            merge_adapter(node, export, merged, log)
            require_export(node, merged)
            export = merged
        os.rename(export, model)
    require_export(node, model)


def finished(node: Node, directory: Path, steps: int) -> bool:
    """Report whether the export of the last step exists and is complete."""
    try:
        hand_off(node, directory, steps)
    except StageFailed:
        return False
    return True
