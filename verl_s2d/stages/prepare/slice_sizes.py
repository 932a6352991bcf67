"""Locate the problems of a run and count those in slices, before and after they have been prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from verl_s2d.stages.prepare.overlong import DROP, LIMITED_VALIDATION, Messages, shortened
from verl_s2d.stages.prepare.stage import SOURCES, TRAIN_FILE, LimitedPrompts, evaluation_files, slice_sizes
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

Changes = Callable[[Sequence[Messages]], Mapping[int, Messages | None]]


def slice_size(plan: Plan, node: Node, *, expected: int | None = None) -> int | None:
    """Count the problems in the slice that a stage reads.

    Args:
        expected: total of training problems, used until they exist.

    Returns:
        The number of problems; None when it cannot be known yet.
    """
    slices, name = node.inputs["slices"], node.settings["slice"]
    if _built(plan, slices):
        summary = json.loads((plan.context.directory(slices) / "slices.json").read_text())
        return len(summary["slices"][name])
    if SOURCES in slices.settings:
        chosen = _chosen(plan, slices)
        return None if chosen is None else len(chosen[name])
    count = plan.recipe.data.labels
    if count is None:
        train = train_file(plan, slices)
        if train is not None:
            from verl_s2d.data.formats.data_files import row_count

            count = row_count(train, key="data.train") - _to_drop(plan, slices, train)
        elif expected is not None:
            count = expected
        else:
            return None
    return slice_sizes(count)[name]


def _chosen(plan: Plan, slices: Node) -> Mapping[str, Sequence[str]] | None:
    """Choose the problems of slices of data sources; None before a script has made the problems."""
    from verl_s2d.data.problems import read_problems
    from verl_s2d.data.slices import slices_of

    if (train := train_file(plan, slices)) is None:
        return None
    columns = None if train.is_relative_to(plan.context.run_dir) else plan.recipe.data.columns
    problems = read_problems(train, key="data.train", columns=columns)
    changes = limits_to_come(plan, slices)([problem.messages for problem in problems])
    kept = [problem for place, problem in enumerate(problems) if changes.get(place, ()) is not None]
    return slices_of(kept, slices.settings["labels"], slices.settings["seed"], slices.settings[SOURCES])


def train_file(plan: Plan, node: Node) -> Path | None:
    """Locate the training problems that a stage reads, or what they are made of; None until a script has run."""
    if "train" in node.externals:
        return Path(node.externals["train"].location)
    source = node.inputs.get("source")
    if source is None:
        return None
    return plan.context.directory(source) / TRAIN_FILE if _built(plan, source) else train_file(plan, source)


def evaluation_sets(plan: Plan, node: Node) -> dict[str, Path]:
    """Locate the evaluation sets that a stage reads, or what they are made of; empty until a script has run."""
    source = node.inputs.get("source")
    if source is None:
        return evaluation_files(node, "source", plan.context)
    return evaluation_files(node, "source", plan.context) if _built(plan, source) else evaluation_sets(plan, source)


def validation_set(plan: Plan, node: Node) -> Path | None:
    """Locate the validation problems, as the stage that limits the prompts of `node` has left them."""
    name, source = plan.recipe.data.validation, node.inputs.get("source")
    if name is not None and source is not None and isinstance(source.stage, LimitedPrompts) and _built(plan, source):
        return plan.context.directory(source) / LIMITED_VALIDATION
    return None if name is None else plan.recipe.directory / name


def limits_to_come(plan: Plan, node: Node) -> Changes:
    """Return what will become of the overlong prompts that a stage reads: prompts -> changes, as in `shortened`.

    Nothing changes where prompts are refused, have been limited already, or cannot be rendered before a script has run.
    """
    source = node.inputs.get("source")
    if source is None or not isinstance(source.stage, LimitedPrompts) or _built(plan, source):
        return lambda prompts: {}
    if not all(_built(plan, node) for node in source.inputs.values()):
        return lambda prompts: {}
    models = source.stage.renderers(source, plan.context)
    return lambda prompts: shortened(prompts, models, source.stage.limit(source))


def _to_drop(plan: Plan, slices: Node, train: Path) -> int:
    if plan.recipe.data.overlong_prompts != DROP:
        return 0
    from verl_s2d.data.problems import read_problems

    problems = read_problems(train, key="data.train", columns=plan.recipe.data.columns)
    changes = limits_to_come(plan, slices)([problem.messages for problem in problems])
    return sum(messages is None for messages in changes.values())


def _built(plan: Plan, node: Node) -> bool:
    return is_built(node, plan.context.directory(node))
