"""What was built, as the report wants it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.ledger import Ledger, add_ledgers, empty_ledger
from verl_s2d.workflow.manifest import read_manifest
from verl_s2d.workflow.planning import Plan


@dataclass(frozen=True)
class RowResult:
    """One finished row.

    Attributes:
        result: result.json of its evaluation.
        ledger: union and sum over the stages its model was made with; the evaluation is not part of it.
        stages: {kind, name, dir, digest, seconds, updates} of each stage, in the order in which they were built.
    """

    name: str
    seed: int
    result: dict[str, Any]
    ledger: Ledger
    stages: list[dict[str, Any]]


def finished_rows(plan: Plan) -> list[RowResult]:
    """The rows whose evaluation is there, in the order of the plan."""
    built = {node.digest for node in plan.order} - {node.digest for node in plan.missing()}
    return [_row(plan, row.name, row.seed, row.target) for row in plan.rows if row.target.digest in built]


def _row(plan: Plan, name: str, seed: int, target: Node) -> RowResult:
    result = json.loads((plan.context.directory(target) / "result.json").read_text())
    ledgers, stages = [], []
    for node in ancestors(target):
        directory = plan.context.directory(node)
        # An ancestor may be missing when its directory was deleted after the row was finished.
        manifest = read_manifest(directory) or {"ledger": empty_ledger(), "seconds": 0.0}
        if node.kind != "evaluate":
            ledgers.append(manifest["ledger"])
        stages.append(
            {
                "kind": node.kind,
                "name": node.name,
                "dir": str(directory),
                "digest": node.digest,
                "seconds": manifest["seconds"],
                "updates": manifest["ledger"]["updates"],
            }
        )
    return RowResult(name, seed, result, add_ledgers(ledgers), stages)
