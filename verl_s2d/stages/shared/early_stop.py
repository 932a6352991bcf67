"""A stage that an alarm has stopped: which of its checkpoints is its result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.stages.shared import checkpoints
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.store.hf_export import export_problem
from verl_s2d.workflow.store.manifest import write_atomically
from verl_s2d.workflow.watch.detectors import validation_score
from verl_s2d.workflow.watch.metric_logs import read_metrics

STOPPED = "stopped.json"
"""{"alarm": its record, "steps": done until the end, "kept": step of the result, "score": its validation score}. As
long as it is there the stage is not started again."""


def record(directory: Path, alarm: Mapping[str, Any]) -> None:
    """Note that the stage is to end because of an alarm; which checkpoint is kept follows when it has."""
    _write(directory, {"alarm": dict(alarm)})


def read(directory: Path) -> dict[str, Any] | None:
    """The record of a stage that was stopped, None of any other."""
    try:
        stopped = json.loads((directory / STOPPED).read_text())
        return stopped if {"text", "since"} <= stopped["alarm"].keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def settle(node: Node, directory: Path) -> bool:
    """Hand off the checkpoint to keep, if the stage was stopped; whether it was.

    Raises:
        StageFailed: there is no checkpoint from before the alarm.
    """
    stopped = read(directory)
    if stopped is None:
        return False
    if "kept" not in stopped:
        kept, score = _best(node, directory, stopped["alarm"])
        steps = max(read_metrics(directory), default=stopped["alarm"]["step"])
        stopped |= {"steps": steps, "kept": kept, "score": score}
        _write(directory, stopped)
    checkpoints.hand_off(node, directory, stopped["kept"], earlier=True)
    return True


def steps_done(directory: Path) -> int | None:
    """Steps that a stopped stage has done, the ones that its result does not contain included; None of any other."""
    return (read(directory) or {}).get("steps")


def _best(node: Node, directory: Path, alarm: Mapping[str, Any]) -> tuple[int, float | None]:
    """(step, validation score) of the best checkpoint from before the alarm; the last one where nothing was validated.

    A checkpoint counts with the validation of its own step. Of equals the later one is the best.
    """
    saved = directory / "checkpoints"
    newest, metrics = checkpoints.completed_step(saved), read_metrics(directory)
    candidates = {}
    for path in saved.glob("global_step_*"):
        step = int(found[1]) if (found := re.fullmatch(r"global_step_(\d+)", path.name)) else 0
        export = checkpoints.find_export(saved, step) if 0 < step < alarm["since"] and newest else None
        if export is not None and step <= newest and export_problem(export) is None:
            candidates[step] = validation_score(metrics.get(step, {}))
    if not candidates:
        raise StageFailed(
            f"{node.name} was stopped by an alarm ({alarm['text']}), and no checkpoint is older than that. Save more "
            f"often (save_every), or let the alarm log only (alarms.{alarm['alarm']}: log).",
            log=directory / "log.txt",
        )
    validated = {step: score for step, score in candidates.items() if score is not None}
    best = max(validated or candidates, key=lambda step: (validated.get(step, 0.0), step))
    return best, validated.get(best)


def _write(directory: Path, stopped: Mapping[str, Any]) -> None:
    write_atomically(directory / STOPPED, json.dumps(stopped, indent=1, allow_nan=False) + "\n")
