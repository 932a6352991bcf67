"""Compute where a matched stage stops: the first step that reaches the consumption in the other row's ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.stages.ending.end_file import ended
from verl_s2d.stages.shared.batch_settings import sequences_per_step
from verl_s2d.workflow.graph import MATCHED, Node, lineage
from verl_s2d.workflow.ledger import add_ledgers, amount
from verl_s2d.workflow.store.checkpoints import completed_step
from verl_s2d.workflow.store.manifest import is_built, read_manifest

UNTIL = "until"
"""Setting of a stage that a rule may end before its `steps`, which are then the maximum."""


def wanted(node: Node, stages: Path) -> int | None:
    """Return the whole row's budget, in units of the item it is matched by; None until the other row's ledger exists.

    Args:
        node: the matched stage.
        stages: directory of the stage directories.
    """
    matched = node.settings["matched"]
    if "budget" in matched:
        return matched["budget"]
    return _consumed(lineage(node.inputs[MATCHED]), matched["by"], stages)


def left(node: Node, stages: Path) -> int | None:
    """Return the budget left for this stage after the earlier stages of its row; None until the other ledger exists.

    Raises:
        UserError: no budget is left.
    """
    by, total = node.settings["matched"]["by"], wanted(node, stages)
    before = _consumed([n for n in lineage(node) if n is not node], by, stages)
    if total is None or before is None:
        return None
    if total <= before:
        raise UserError(
            f"{node.name} has nothing to do: the stages before it have consumed {before:,} {words(by)}, and "
            f"all of {node.settings['matched']['to']} only {total:,}.",
            key=f"matched.{node.operations['row']}",
            value=total,
            remedy="Match the row to one that consumes more, or leave it out.",
        )
    return total - before


def steps_to_ask_for(node: Node, stages: Path) -> int | None:
    """Return the number of steps to start a trainer with; None until the other row's ledger exists.

    A response is one verifier call and at least one token: matched by tokens, this is an upper bound.
    """
    if node.settings["steps"] is not None:
        return node.settings["steps"]
    budget = left(node, stages)
    return None if budget is None else math.ceil(budget / sequences_per_step(node))


def last_step(node: Node, directory: Path) -> int | None:
    """Return the last step of the stage in `directory`; None while it is not known."""
    if (early := ended_early(node, directory)) is not None:
        return early[0]
    if _ends_by_tokens(node):
        return None
    steps = steps_to_ask_for(node, directory.parent)
    return steps if UNTIL not in node.settings or completed_step(directory / "checkpoints") == steps else None


def ended_early(node: Node, directory: Path) -> tuple[int, str] | None:
    """Return (step, reason) of a stage that a rule has ended; None for others, and at the maximum of its steps."""
    found = ended(directory / "checkpoints") if UNTIL in node.settings or _ends_by_tokens(node) else None
    return None if found is None or found[0] == node.settings["steps"] else found


def token_budget(node: Node, stages: Path) -> dict[str, int | None]:
    """Return the rule of a stage matched by tokens; null until the other row's ledger exists."""
    return {"sampled_tokens": left(node, stages)} if _ends_by_tokens(node) else {}


def words(by: str) -> str:
    """Spell out the name of a ledger item."""
    return by.replace("_", " ")


def length(node: Node) -> str:
    """Describe the length of a training stage, for `plan`."""
    steps, matched = node.settings["steps"], node.settings.get("matched")
    if matched is None:
        return f"at most {steps} steps" if UNTIL in node.settings else f"{steps} steps"
    reason = f"{words(matched['by'])} of {matched['to']}"
    return f"until the {reason}" if steps is None else f"{steps} steps, the {reason}"


def _consumed(nodes: Iterable[Node], by: str, stages: Path) -> int | None:
    ledgers: list[dict[str, Any]] = []
    for node in nodes:
        directory = stages / node.label
        if not is_built(node, directory):
            return None
        ledgers.append(read_manifest(directory)["ledger"])
    return amount(add_ledgers(ledgers), by)


def _ends_by_tokens(node: Node) -> bool:
    return node.settings["steps"] is None and node.settings["matched"]["by"] == "sampled_tokens"
