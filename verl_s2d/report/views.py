"""A plan and the state of a run as data, as --json prints them."""

from __future__ import annotations

from typing import Any

from verl_s2d import redaction
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.stages.evaluate.stage import Evaluate
from verl_s2d.stages.prepare.stage import evaluation_files
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built, read_manifest
from verl_s2d.workflow.store.run_directory import is_locked
from verl_s2d.workflow.watch.alarm_log import recorded


def plan_view(plan: Plan) -> dict[str, Any]:
    """List every stage with its state, its purpose and the command of its next attempt."""
    view = {
        "recipe": plan.recipe.name,
        "run_dir": str(plan.context.run_dir),
        "device": plan.context.device,
        "measured": None if plan.recipe.origin.shrink else plan.recipe.measured,
        "rows": [{"name": r.name, "seed": r.seed, "stage": r.target.label} for r in plan.rows],
        "stages": [_planned(plan, node) for node in plan.order],
    }
    return redaction.current().data(view)


def _planned(plan: Plan, node: Node) -> dict[str, Any]:
    stage, directory = node.stage, plan.context.directory(node)
    cached = is_built(node, directory)
    command = stage.command(node, plan.context, attempts.count(directory) + 1)
    argv = command.argv
    if isinstance(stage, Evaluate) and not evaluation_files(node, "source", plan.context):
        argv = [*argv, f"set.<name>={plan.context.directory(node.inputs['source'])}/<name>.parquet"]
    return {
        "kind": node.kind,
        "name": node.name,
        "state": "cached" if cached else "partial" if directory.exists() else "missing",
        "does": stage.describe(node),
        "steps": stage.total_steps(node),
        "rows": plan.rows_of(node),
        "inputs": {role: source.label for role, source in node.inputs.items()},
        "dir": str(directory),
        "digest": node.digest,
        "argv": argv,
    }


def status_view(plan: Plan) -> dict[str, Any]:
    """List every stage with its state: done, running, stopped (unfinished) or missing."""
    running = is_locked(plan.context.run_dir)
    stages = []
    for node in plan.order:
        directory = plan.context.directory(node)
        manifest = read_manifest(directory)
        entry: dict[str, Any] = {"kind": node.kind, "name": node.name, "dir": str(directory), "digest": node.digest}
        if manifest is not None and manifest.get("digest") == node.digest:
            entry |= {"state": "done", "seconds": manifest["seconds"], "attempts": manifest["attempts"]}
            entry |= {key: manifest[key] for key in ("stopped", "until") if key in manifest}
        elif attempts.count(directory):
            state = "running" if running and attempts.is_open(directory) else "stopped"
            step = max(read_metrics(directory), default=0)
            entry |= {
                "state": state,
                "seconds": round(attempts.seconds_spent(directory), 1),
                "attempts": attempts.count(directory),
                "step": step,
                "steps": node.stage.total_steps(node),
            }
        else:
            entry |= {"state": "missing"}
        if alarms := recorded(directory):
            entry["alarms"] = alarms
        stages.append(entry)
    return {"recipe": plan.recipe.name, "run_dir": str(plan.context.run_dir), "running": running, "stages": stages}
