"""Plan the evaluation of single models or finished stages on a recipe's evaluation sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.stages.builder import Builder
from verl_s2d.validation import suggestion
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.identity import External, model_external
from verl_s2d.workflow.plan import Plan, Row
from verl_s2d.workflow.store.manifest import is_built


def evaluation_plan(plan: Plan, models: Sequence[str]) -> Plan:
    """Plan one evaluation row for each of `models`, and for each seed unless the model is a stage with a seed.

    Args:
        plan: the rows whose stages can be named.
        models: each the name or label of a stage of the plan, a stage's directory, a model directory or a hub id.

    Raises:
        UserError: a stage that is not finished or makes no model, or a model that cannot be read.
    """
    rows, externals = [], {}
    seeds = list(dict.fromkeys(row.seed for row in plan.rows))
    for name in dict.fromkeys(models):
        stages = _stages(plan, name)
        found: list[tuple[int, Node | External]] = [(node.settings.get("seed", seeds[0]), node) for node in stages]
        if not stages:
            model = _model(plan, name)
            found = [(seed, model) for seed in seeds]
        for seed, model in found:
            builder = Builder(plan.recipe, name, seed, plan.context.device, externals, several_seeds=len(seeds) > 1)
            rows.append(Row(name, seed, builder.evaluate(model)))
    return replace(plan, rows=rows)


def _stages(plan: Plan, name: str) -> list[Node]:
    """List the finished stages with this name (one per seed), label or directory; empty when the plan has none."""
    found = []
    for node in plan.order:
        directory = plan.context.directory(node)
        called = (node.name, node.name.partition(" ")[0], node.label, str(directory))
        if name in called or str(Path(name).expanduser().resolve()) == str(directory):
            found.append(node)
    for node in found:
        _require_finished(plan, node)
    return found


def _require_finished(plan: Plan, node: Node) -> None:
    directory = plan.context.directory(node)
    if not node.stage.makes_model(node):
        remedy = suggestion("", [n.name for n in plan.order if n.stage.makes_model(n)])
        raise UserError(f"{node.name} makes no model.", key="model", value=node.label, remedy=remedy)
    if not is_built(node, directory):
        raise UserError(
            f"{node.name} is not finished.",
            key="model",
            value=node.label,
            remedy="`verl-s2d run` builds it; `verl-s2d status` says how far it is.",
        )
    gone = [n for n in ancestors(node) if not n.stage.prepares and not is_built(n, plan.context.directory(n))]
    if gone:
        # Evaluating the stage would build its missing inputs again.
        raise UserError(
            f"{gone[0].name}, from which {node.name} was made, is no longer there.",
            key="model",
            value=node.label,
            remedy=f"Give the model itself: {directory / 'model'}.",
        )


def _model(plan: Plan, name: str) -> External:
    """Identify a model from outside the plan, checked as far as possible without loading it."""
    from verl_s2d.data.model_files import hub_files, read_model

    path = Path(name).expanduser()
    if (path / "manifest.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    exists = path.exists()
    if not exists and not name.startswith((".", "/", "~")) and "/" not in name:
        near = suggestion(name, [node.name for node in plan.order if node.stage.makes_model(node)])
        raise UserError(
            "No stage of these rows has this name, and no such model directory exists.",
            key="model",
            value=name,
            remedy=f"{near} Or give a directory, or a hub id like organisation/name.",
        )
    model = model_external(str(path.resolve()) if exists else name, None, Path.cwd(), "model")
    read_model(hub_files(model.location, None, "model") if model.is_hub else Path(model.location), "model")
    return model
