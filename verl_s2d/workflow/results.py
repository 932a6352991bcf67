"""What was built, as the report wants it."""

from __future__ import annotations

import json

from verl_s2d.errors import UserError
from verl_s2d.evaluation.report import Match, Report, RowResult, build_report, write_report
from verl_s2d.workflow.digests import damage
from verl_s2d.workflow.graph import Node, ancestors, lineage
from verl_s2d.workflow.ledger import Ledger, add_ledgers, amount, empty_ledger
from verl_s2d.workflow.manifest import inspect_manifest, read_manifest
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.rows import Row
from verl_s2d.workflow.stages.budget import wanted


def finished_rows(plan: Plan) -> list[RowResult]:
    """The rows whose evaluation is there, in the order of the plan."""
    built = {node.digest for node in plan.order} - {node.digest for node in plan.missing()}
    return [_row(plan, row) for row in plan.rows if row.target.digest in built]


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


def _row(plan: Plan, row: Row) -> RowResult:
    _require_whole(plan, row.target)
    result = json.loads((plan.context.directory(row.target) / "result.json").read_text())
    ledgers, stages = [], []
    for node in lineage(row.target):
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
    ledger = add_ledgers(ledgers)
    return RowResult(row.name, row.seed, result, ledger, stages, _match(plan, row.target, ledger))


def _match(plan: Plan, target: Node, ledger: Ledger) -> Match | None:
    model = target.inputs.get("model")
    matched = model.settings.get("matched") if model else None
    if matched is None:
        return None
    goal = wanted(model, plan.context.directory(model).parent)
    return None if goal is None else Match(matched["to"], matched["by"], goal, amount(ledger, matched["by"]))
