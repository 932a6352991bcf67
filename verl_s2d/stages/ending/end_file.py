"""Store the state of an end rule in a checkpoint, and read why a stage has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_s2d.data.files import write_json
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.workflow.store.checkpoints import completed_step

END = "end_rule.json"
"""File in every checkpoint of a stage with `until`: EndRule.state after the checkpoint's step."""


def checkpoint_directory(checkpoints: str | Path, step: int) -> Path:
    """Locate verl's checkpoint of a step."""
    return Path(checkpoints) / f"global_step_{step}"


def store(rule: EndRule, checkpoints: str | Path, step: int) -> None:
    """Write the rule's state into the checkpoint of a step.

    Before verl's own files: its tracker, written last, makes a checkpoint complete.
    """
    if rule.active:
        write_json(rule.state(), checkpoint_directory(checkpoints, step) / END)


def load(rule: EndRule, checkpoints: str | Path, step: int) -> None:
    """Restore the rule's state from the checkpoint of a step, if there is one to resume from (step > 0)."""
    if rule.active and step > 0:
        rule.restore(json.loads((checkpoint_directory(checkpoints, step) / END).read_text()))


def ended(checkpoints: Path) -> tuple[int, str] | None:
    """Read (step, reason) of the stage whose newest complete checkpoint says that a rule has ended it, else None."""
    step = completed_step(checkpoints)
    if step is None:
        return None
    try:
        state: dict[str, Any] = json.loads((checkpoint_directory(checkpoints, step) / END).read_text())
        return None if state["reason"] is None else (step, str(state["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
