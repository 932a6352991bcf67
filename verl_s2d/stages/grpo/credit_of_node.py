"""Carry the credit of stage 3 from a recipe into a node, and from a node into a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.signals.credit.credit import Credit
from verl_s2d.signals.credit.credit_registry import read_credit
from verl_s2d.stages.shared.signal_settings import described_keys
from verl_s2d.stages.shared.training_stage import MODEL, TRUST
from verl_s2d.teachers.router import TEACHER
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context, model_location, trusts_remote_code

CREDIT = "credit"
"""Role of the file that holds a credit of a recipe's own."""
CREDIT_RESERVED = {
    "s2d.credit": "Set `credit:` of stage 3, stages.student_rl.",
    "s2d.teacher.path": MODEL,
    "s2d.teacher.trust_remote_code": TRUST,
}


def credit_of_node(node: Node) -> Credit | None:
    """Read the credit of a stage of the graph; None for plain GRPO."""
    if CREDIT not in node.settings:
        return None
    keys = dict(node.settings[CREDIT])
    if CREDIT in node.externals:
        keys["type"] = f"{node.externals[CREDIT].location}:{keys['type']}"
    return read_credit(keys, key=CREDIT)


def credit_overrides(node: Node, context: Context) -> Mapping[str, Any]:
    """Set the keys of a command that name the credit and its teacher; none for plain GRPO."""
    credit = credit_of_node(node)
    if credit is None:
        return {}
    return {
        **{f"+s2d.credit.{name}": value for name, value in credit.model_dump(by_alias=True).items()},
        "+s2d.teacher.path": model_location(node, TEACHER, context),
        "+s2d.teacher.trust_remote_code": trusts_remote_code(node, TEACHER),
    }


def credit_words(node: Node) -> str:
    """Describe a node's credit for `plan`; empty for plain GRPO."""
    return f" and the teacher's credit, {described_keys(node.settings[CREDIT])}," if CREDIT in node.settings else ","
