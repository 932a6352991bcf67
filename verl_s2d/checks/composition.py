"""Refuse stages whose configuration verl rejects, or whose parallel sizes do not fit the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verl_s2d.errors import Faults, UserError
from verl_s2d.sizing.layouts import check_layout
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan


def require_accepted(
    plan: Plan, nodes: Iterable[Node], answers: Mapping[str, Mapping[str, Any]], models: Models
) -> None:
    """Raise UserError for all stages that would not start.

    Args:
        answers: label -> {refused, settings} (stages/acceptance.py).
        models: shapes to check parallel sizes against.
    """
    faults = Faults()
    for node in nodes:
        with faults.collected():
            _require(plan, node, answers[node.label], models)
    faults.raise_found()


def _require(plan: Plan, node: Node, found: Mapping[str, Any], models: Models) -> None:
    if found["settings"] is not None:
        # First, because verl's assertions explain less.
        check_layout(plan.recipe, node, found["settings"], models)
    refused = found["refused"]
    if refused is not None:
        value = {} if refused["value"] is None else {"value": refused["value"]}
        raise UserError(
            f"{node.name} would not start: {refused['problem']}",
            key=refused["key"] or f"verl: of {node.name}",
            remedy=refused["remedy"]
            or "Change the key that the message names; `verl-s2d plan --overrides` shows all of the stage's.",
            **value,
        )
