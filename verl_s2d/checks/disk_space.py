"""Check the free space for a run's checkpoints and models before the first training stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.sizing.disk import run_disk, training_disk
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.workflow.plan import Plan

GB = 10**9


def check_disk(plan: Plan, settings: Mapping[str, Mapping[str, Any]], models: Models | None = None) -> str:
    """Compare free space with the checkpoints and models of missing stages; returns a sentence with both sizes.

    Samples are left out, because only upper bounds of their sizes are known. Stages of an unknown model shape or number
    of steps are left out, too.

    Args:
        settings: label -> composed configuration of training stages.
        models: shapes, looked up when None.

    Raises:
        UserError: the run directory's file system has too little free space.
    """
    models, run_dir, stages = models or Models(plan), plan.context.run_dir, []
    for node in plan.missing():
        shape = models.shape(node) if node.label in settings else None
        if shape is not None:
            longest = plan.recipe.data.prompt_tokens + node.stage.response_tokens(node)
            training = node.stage.demand(settings[node.label], longest)
            stages.append((node, training_disk(node, settings[node.label], training, shape)))
    known = [(node, disk) for node, disk in stages if disk is not None]
    needed, _ = run_disk(disk for _, disk in known)
    free = _free(run_dir) + sum(_written(plan.context.directory(node) / "checkpoints") for node, _ in known)
    told = f"checkpoints and models take {needed / GB:,.0f} GB, {free / GB:,.0f} GB are free for them"
    if needed > free:
        node, largest = max(known, key=lambda entry: entry[1].checkpoint * entry[1].kept)
        raise UserError(
            f"{told[0].upper()}{told[1:]}. {node.name} keeps the most: {largest.kept} checkpoints of "
            f"{largest.checkpoint / GB:,.0f} GB.",
            key="--run-dir",
            value=str(run_dir),
            remedy="Name a directory on a larger file system. A stage that an alarm may stop keeps every checkpoint: "
            "there save less often (save_every).",
        )
    return told


def _free(directory: Path) -> int:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _written(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
