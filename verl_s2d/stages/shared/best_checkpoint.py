"""Choose the result of a stage that an alarm has stopped: the best checkpoint from before the alarm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.metrics.detectors import validation_score
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.stages.shared.hand_off import find_export, hand_off
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.store.checkpoints import completed_step
from verl_s2d.workflow.store.saved_weights import export_problem
from verl_s2d.workflow.watch import early_stop


def hand_off_best(node: Node, directory: Path) -> bool:
    """Hand off the best checkpoint of a stopped stage; return False for a stage that was not stopped.

    Raises:
        StageFailed: no checkpoint is older than the alarm.
    """
    stopped = early_stop.read(directory)
    if stopped is None:
        return False
    if "kept" not in stopped:
        kept, score = _best(node, directory, stopped["alarm"])
        steps = max(read_metrics(directory), default=stopped["alarm"]["step"])
        stopped |= {"steps": steps, "kept": kept, "score": score}
        early_stop.record(directory, stopped)
    hand_off(node, directory, stopped["kept"], earlier=True)
    return True


def _best(node: Node, directory: Path, alarm: Mapping[str, Any]) -> tuple[int, float | None]:
    """Choose (step, validation score) of the best checkpoint from before the alarm; without validation, the last one.

    A checkpoint has the validation score of its own step. Of equal scores the later step wins.
    """
    saved = directory / "checkpoints"
    newest, metrics = completed_step(saved), read_metrics(directory)
    candidates = {}
    for path in saved.glob("global_step_*"):
        step = int(found[1]) if (found := re.fullmatch(r"global_step_(\d+)", path.name)) else 0
        export = find_export(saved, step) if 0 < step < alarm["since"] and newest else None
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
