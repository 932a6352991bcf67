"""Read, repair and thin out verl's checkpoint directories."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from verl_s2d.data.files import written_whole
from verl_s2d.workflow.store.saved_weights import checkpoint_problems

TRACKER = "latest_checkpointed_iteration.txt"
DAMAGED = "damaged_"
"""Prefix that renames the directory of a damaged checkpoint."""


def completed_step(checkpoints: Path) -> int | None:
    """Read the step that verl would resume from: verl writes its tracker file last. None when there is none."""
    try:
        step = int((checkpoints / TRACKER).read_text())
    except (OSError, ValueError):
        return None
    return step if (checkpoints / f"global_step_{step}").is_dir() else None


def _complete(checkpoints: Path) -> list[int]:
    """List the steps whose checkpoint is complete and has not been thinned out by verl."""
    return [
        int(m[1])
        for p in checkpoints.iterdir()
        if (m := re.fullmatch(r"global_step_(\d+)", p.name))
        and any(p.glob("data*.pt"))
        and any(file.is_file() for file in p.glob("*/**/*"))
    ]


def thin_out(checkpoints: Path, keep: int | None) -> None:
    """Delete all checkpoints except the newest `keep` complete ones; None deletes nothing.

    verl's trainer thins out only the checkpoints that its own process saved. A step newer than the one to resume from
    is an interrupted write.
    """
    newest = completed_step(checkpoints)
    if newest is None or keep is None:
        return
    complete = sorted((step for step in _complete(checkpoints) if step <= newest), reverse=True)
    for path in checkpoints.glob("global_step_*"):
        if path.name not in {f"global_step_{step}" for step in complete[:keep]}:
            shutil.rmtree(path, ignore_errors=True)


def repair(checkpoints: Path) -> None:
    """Make the checkpoints of a killed stage resumable.

    verl's RL trainer rewrites its tracker in place: a kill in that moment leaves it empty, and verl then fails on every
    resume. The dataloader state is written just before the tracker, so the newest step that has one is complete. Steps
    that verl has thinned out (trainer.max_actor_ckpt_to_keep) have the dataloader state only.
    """
    tracker = checkpoints / TRACKER
    if not tracker.exists() or completed_step(checkpoints) is not None:
        return
    complete = _complete(checkpoints)
    if not complete:
        tracker.unlink()
        return
    with written_whole(tracker) as temporary:
        temporary.write_text(str(max(complete)))


def set_aside_damaged(checkpoints: Path) -> list[str]:
    """Resume from the newest intact checkpoint; return the damaged files of newer ones, one line each.

    Damaged checkpoints are renamed so that verl does not find them. Without an intact one the stage begins again.
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
    """Count the processes that wrote the FSDP checkpoint to resume from; only as many can read it. None if unknown."""
    step = completed_step(checkpoints)
    if step is None:
        return None
    for path in (checkpoints / f"global_step_{step}").rglob("model_world_size_*_rank_0.pt"):
        return int(path.name.split("_")[3])
    return None


def delete(directory: Path) -> None:
    """Delete the checkpoints of a finished stage."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
