"""What was built, as the report wants it."""

from __future__ import annotations

import json

from verl_s2d.errors import UserError
from verl_s2d.evaluation.report import Report, RowResult, build_report, write_report
from verl_s2d.workflow.digests import damage
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.ledger import add_ledgers, empty_ledger
from verl_s2d.workflow.manifest import inspect_manifest, read_manifest
from verl_s2d.workflow.planning import Plan


def finished_rows(plan: Plan) -> list[RowResult]:
    """The rows whose evaluation is there, in the order of the plan."""
    built = {node.digest for node in plan.order} - {node.digest for node in plan.missing()}
    return [_row(plan, row.name, row.seed, row.target) for row in plan.rows if row.target.digest in built]


def report_of(rows: list[RowResult], plan: Plan) -> Report:
    """The report; its files are written unless they say the same already (drawing the plots takes longer than all
    the rest of a run that has nothing to build)."""
    run_dir, published = plan.context.run_dir, plan.recipe.published
    report = build_report(rows, published)
    try:
        written = json.loads((run_dir / "report.json").read_text())
    except (OSError, ValueError):
        written = {}
    same = json.loads(json.dumps(report.data)) == {k: v for k, v in written.items() if k != "plots"}
    if same and all((run_dir / name).is_file() for name in ("report.md", *written.get("plots", ()))):
        return Report(written)
    return write_report(rows, run_dir, published)


def _require_whole(plan: Plan, target: Node) -> None:
    """Raises UserError rather than let a damaged file into the table."""
    for node in ancestors(target):
        directory = plan.context.directory(node)
        manifest, problem = inspect_manifest(directory)
        if manifest is not None and node is target:
            found = damage(directory, [o for o in manifest["outputs"] if o["name"] == "result.json"])
            problem = found[0] if found else None
        if problem is not None:
            raise UserError(
                f"{node.name} is damaged: {problem}.",
                key="stage",
                value=str(directory),
                remedy="`verl-s2d run` builds it again; or put back a copy of the file.",
            )


def _row(plan: Plan, name: str, seed: int, target: Node) -> RowResult:
    _require_whole(plan, target)
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
