"""A plan and the state of a run as data (for --json) and as text."""

from __future__ import annotations

from typing import Any

from verl_s2d import redaction
from verl_s2d.sizing.size_tables import sizes_text
from verl_s2d.stages import kinds
from verl_s2d.stages.prepare.stage import evaluation_files
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.progress import duration
from verl_s2d.workflow.store.manifest import is_built, read_manifest
from verl_s2d.workflow.store.run_directory import is_locked
from verl_s2d.workflow.watch.alarm_log import recorded
from verl_s2d.workflow.watch.metric_logs import read_metrics


def plan_view(plan: Plan) -> dict[str, Any]:
    """Every stage with its state, what it will do and the exact command of its next attempt."""
    view = {
        "recipe": plan.recipe.name,
        "run_dir": str(plan.context.run_dir),
        "device": plan.context.device,
        "rows": [{"name": r.name, "seed": r.seed, "stage": r.target.label} for r in plan.rows],
        "stages": [_planned(plan, node) for node in plan.order],
    }
    return redaction.current().data(view)


def _planned(plan: Plan, node: Node) -> dict[str, Any]:
    kind, directory = kinds()[node.kind], plan.context.directory(node)
    cached = is_built(node, directory)
    command = kind.command(node, plan.context, attempts.count(directory) + 1)
    argv = command.argv
    if node.kind == "evaluate" and not evaluation_files(node, "source", plan.context):
        argv = [*argv, f"set.<name>={plan.context.directory(node.inputs['source'])}/<name>.parquet"]
    return {
        "kind": node.kind,
        "name": node.name,
        "state": "cached" if cached else "partial" if directory.exists() else "missing",
        "does": kind.describe(node),
        "steps": kind.total_steps(node),
        "rows": plan.rows_of(node),
        "inputs": {role: source.label for role, source in node.inputs.items()},
        "dir": str(directory),
        "digest": node.digest,
        "argv": argv,
    }


def plan_text(view: dict[str, Any], *, overrides: bool) -> str:
    """One line a stage; with `overrides` also its command, one argument a line. Sizes are in tables behind them."""
    stages = view["stages"]
    todo = [s for s in stages if s["state"] != "cached"]
    lines = [f"{view['recipe']} in {view['run_dir']} ({view['device']})"]
    width = max(len(s["name"]) for s in stages)
    for stage in stages:
        mark = {"cached": "cached ", "partial": "resume ", "missing": "build  "}[stage["state"]]
        lines.append(f"  {mark} {stage['name']:<{width}}  {stage['does']}")
        lines.append(f"          {'':<{width}}  {stage['kind']}-{stage['digest'][:12]}  for {', '.join(stage['rows'])}")
        if overrides:
            lines += [f"              {argument}" for argument in stage["argv"]]
    steps = sum(s["steps"] or 0 for s in todo)
    lines.append(
        f"{len(stages)} stages, {len(stages) - len(todo)} cached, {len(todo)} to build ({steps} training steps)"
    )
    if "sizes" in view:
        lines.append(sizes_text(view))
    return "\n".join(lines)


def status_view(plan: Plan) -> dict[str, Any]:
    """State of every stage: done, running, stopped (partly done) or missing."""
    running = is_locked(plan.context.run_dir)
    stages = []
    for node in plan.order:
        directory = plan.context.directory(node)
        manifest = read_manifest(directory)
        entry: dict[str, Any] = {"kind": node.kind, "name": node.name, "dir": str(directory), "digest": node.digest}
        if manifest is not None and manifest.get("digest") == node.digest:
            entry |= {"state": "done", "seconds": manifest["seconds"], "attempts": manifest["attempts"]}
            entry |= {"stopped": manifest["stopped"]} if "stopped" in manifest else {}
        elif attempts.count(directory):
            state = "running" if running and attempts.is_open(directory) else "stopped"
            step = max(read_metrics(directory), default=0)
            entry |= {
                "state": state,
                "seconds": round(attempts.seconds_spent(directory), 1),
                "attempts": attempts.count(directory),
                "step": step,
                "steps": kinds()[node.kind].total_steps(node),
            }
        else:
            entry |= {"state": "missing"}
        if alarms := recorded(directory):
            entry["alarms"] = alarms
        stages.append(entry)
    return {"recipe": plan.recipe.name, "run_dir": str(plan.context.run_dir), "running": running, "stages": stages}


def status_text(view: dict[str, Any]) -> str:
    """One line a stage."""
    width = max(len(s["name"]) for s in view["stages"])
    lines = [
        f"{view['recipe']} in {view['run_dir']}: {'a run is working here' if view['running'] else 'no run is working'}"
    ]
    for stage in view["stages"]:
        more = duration(stage["seconds"]) if "seconds" in stage else ""
        if stage.get("steps"):
            more += f", step {stage['step']}/{stage['steps']}"
        if stage.get("attempts", 1) > 1:
            more += f", {stage['attempts']} attempts"
        if stopped := stage.get("stopped"):
            more += f", ended at step {stopped['steps']} by an alarm, the result is step {stopped['kept']}"
        lines.append(f"  {stage['state']:<8} {stage['name']:<{width}}  {more}".rstrip())
        lines += [f"           {'':<{width}}  ALARM, {alarm['text']}" for alarm in stage.get("alarms", ())]
    done = sum(s["state"] == "done" for s in view["stages"])
    lines.append(f"{done} of {len(view['stages'])} stages done")
    return "\n".join(lines)
