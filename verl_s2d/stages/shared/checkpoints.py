"""verl's checkpoint directories: which step is complete, repair after a kill, hand-off of the last export."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.stages.merge.adapters import has_adapter, merge_adapter
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.verl_settings.reserved_keys import bare_key
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import merged_verl, require_export
from verl_s2d.workflow.store.archives import checkpoint_problems

TRACKER = "latest_checkpointed_iteration.txt"
DAMAGED = "damaged_"
"""Before the name of a step that cannot be read."""
KEEP_KEYS = {
    "grpo": "trainer.max_actor_ckpt_to_keep",
    "opd": "trainer.max_actor_ckpt_to_keep",
    "warmup": "trainer.max_ckpt_to_keep",
}
"""verl's name of the number of checkpoints to keep, by kind of stage."""
_KEPT = 2
"""The newest checkpoint and the one before it, to fall back to when the newest is damaged."""
_EXPORTS = ("actor/huggingface", "actor/model/huggingface", "huggingface", "model/huggingface")
"""Where FSDP and Megatron checkpoints of verl's RL trainer and of the warmup keep the Hugging Face weights."""


def kept(node: Node) -> int | None:
    """Choose how many checkpoints verl keeps while a stage trains: the recipe's number, by default the newest two.

    None (all) where an alarm may stop the stage: its result may then be any older checkpoint.

    Raises:
        UserError: a number below two: verl deletes a checkpoint before its successor can be resumed from.
    """
    key, chosen = KEEP_KEYS[node.kind], merged_verl(node)
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


def thin_out(checkpoints: Path, keep: int | None) -> None:
    """Delete what earlier attempts left but the newest `keep` complete checkpoints; None deletes nothing.

    verl's trainer counts only the checkpoints that its own process has saved. A step newer than the one to resume from
    is what a kill left of a checkpoint.
    """
    newest = completed_step(checkpoints)
    if newest is None or keep is None:
        return
    complete = sorted((step for step in _complete(checkpoints) if step <= newest), reverse=True)
    for path in checkpoints.glob("global_step_*"):
        if path.name not in {f"global_step_{step}" for step in complete[:keep]}:
            shutil.rmtree(path, ignore_errors=True)


def completed_step(checkpoints: Path) -> int | None:
    """The step verl would resume from: its tracker file is written last. None when there is none."""
    try:
        step = int((checkpoints / TRACKER).read_text())
    except (OSError, ValueError):
        return None
    return step if (checkpoints / f"global_step_{step}").is_dir() else None


def repair(checkpoints: Path) -> None:
    """Make a directory that a kill left behind resumable again.

    verl's RL trainer rewrites its tracker in place: a kill at the wrong moment leaves it empty, and verl then fails on
    every resume. The dataloader state is written just before the tracker, so the newest step that has one is complete;
    of steps that verl has thinned out (trainer.max_actor_ckpt_to_keep) it is all that is left.
    """
    tracker = checkpoints / TRACKER
    if not tracker.exists() or completed_step(checkpoints) is not None:
        return
    complete = _complete(checkpoints)
    if not complete:
        tracker.unlink()
        return
    temporary = tracker.with_suffix(".repair")
    temporary.write_text(str(max(complete)))
    os.replace(temporary, tracker)


def _complete(checkpoints: Path) -> list[int]:
    """List the steps whose checkpoint was written to its end and has not been thinned out by verl."""
    return [
        int(m[1])
        for p in checkpoints.iterdir()
        if (m := re.fullmatch(r"global_step_(\d+)", p.name))
        and any(p.glob("data*.pt"))
        and any(file.is_file() for file in p.glob("*/**/*"))
    ]


def set_aside_damaged(checkpoints: Path) -> list[str]:
    """Make the newest whole step the one to resume from; returns what was wrong with newer ones, one line a file.

    Damaged steps are renamed, so that verl does not find them. Without a whole step the stage begins again.
    """
    told = []
    while (step := completed_step(checkpoints)) is not None:
        directory = checkpoints / f"global_step_{step}"
        problems = checkpoint_problems(directory)
        if not problems:
            break
        told += [f"{directory}/{problem}" for problem in problems]
        aside = checkpoints / f"{DAMAGED}{directory.name}"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(directory, aside)
        repair(checkpoints)
    return told


def world_size(checkpoints: Path) -> int | None:
    """Number of processes that wrote the resumable FSDP checkpoint; only so many can read it. None when unknown."""
    step = completed_step(checkpoints)
    if step is None:
        return None
    for path in (checkpoints / f"global_step_{step}").rglob("model_world_size_*_rank_0.pt"):
        return int(path.name.split("_")[3])
    return None


def find_export(checkpoints: Path, step: int) -> Path | None:
    """The Hugging Face directory inside the checkpoint of `step`."""
    for name in _EXPORTS:
        path = checkpoints / f"global_step_{step}" / name
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return path
    return None


def hand_off(node: Node, directory: Path, steps: int, *, earlier: bool = False) -> None:
    """Verify the export of the last step and move it to <stage>/model, a LoRA adapter merged into its weights. Does
    nothing when that is done already.

    Args:
        steps: the last step.
        earlier: `steps` is one before the last, chosen among the complete ones.

    Raises:
        StageFailed: the last step was not reached, or its export is incomplete.
    """
    model, checkpoints, log = directory / "model", directory / "checkpoints", directory / "log.txt"
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
    """Whether the export of the last step is there and complete."""
    try:
        hand_off(node, directory, steps)
    except StageFailed:
        return False
    return True


def delete(directory: Path) -> None:
    """Free the space of the checkpoints of a finished stage."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
