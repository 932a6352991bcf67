"""Locate the problems of a run and count those in slices, before and after they have been prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.data.label_split import HALF
from verl_s2d.stages.prepare.overlong import DROP, LIMITED_VALIDATION, Messages, limited, shortened
from verl_s2d.stages.prepare.prompt_pool import LABELLED, SUMMARY, PromptPool, pool_files
from verl_s2d.stages.prepare.stage import (
    POOL,
    SOURCES,
    SPLIT,
    TRAIN_FILE,
    LimitedPrompts,
    evaluation_files,
    limit_of,
    renderers,
    slice_sizes,
    slices_settings,
)
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem

Changes = Callable[[Sequence[Messages]], Mapping[int, Messages | None]]


def slice_size(plan: Plan, node: Node, *, expected: int | None = None) -> int | None:
    """Count the problems in the slice that a stage reads.

    Args:
        expected: total of training problems, used until they exist.

    Returns:
        The number of problems; None when it cannot be known yet.
    """
    slices, name = node.inputs["slices"], node.settings["slice"]
    if isinstance(slices.stage, PromptPool):
        return _pool_size(plan, slices, expected)
    return _labelled_size(plan, slices, name, expected)


def _labelled_size(plan: Plan, slices: Node, name: str, expected: int | None) -> int | None:
    if _built(plan, slices):
        summary = json.loads((plan.context.directory(slices) / "slices.json").read_text())
        return len(summary["slices"][name])
    if SOURCES in slices.settings:
        chosen = _chosen(plan, slices)
        return None if chosen is None else len(chosen[name])
    count = slices.settings["labels"]
    if count is None:
        train = train_file(plan, slices)
        if train is not None:
            from verl_s2d.data.formats.data_files import row_count

            count = row_count(train, key="data.train") - _to_drop(plan, slices, train)
        elif expected is not None:
            count = expected
        else:
            return None
    return slice_sizes(count, slices.settings.get(SPLIT, HALF))[name]


def _pool_size(plan: Plan, pool: Node, expected: int | None) -> int | None:
    if _built(plan, pool):
        counts = json.loads((plan.context.directory(pool) / SUMMARY).read_text())
        return counts["labelled"] + counts["prompts"]
    labelled = pool.settings.get(LABELLED)
    beside = _labelled_size(plan, pool.inputs["slices"], labelled, expected) if labelled else 0
    problems = pool_problems(plan, pool)
    if problems is None or beside is None:
        return None
    from verl_s2d.data.unlabelled import of_sources

    everything = [prompt for prompts in problems.values() for prompt in prompts]
    return beside + len(of_sources(everything, pool.settings.get(SOURCES, ())))


def pool_problems(plan: Plan, pool: Node) -> dict[Path, list[Problem]] | None:
    """Read the prompts of a pool's files, dropped or cut as they will be, and of all data sources.

    Returns:
        file -> prompts; None before a stage has written them.
    """
    from verl_s2d.data.unlabelled import read_pool

    if not all(_built(plan, source) for role, source in pool.inputs.items() if role == POOL):
        return None
    made = POOL in pool.inputs
    columns = None if made else plan.recipe.data.columns
    read = {file: read_pool(file, columns=columns) for file in pool_files(pool, plan.context)}
    if "policy" in pool.settings and all(_built(plan, node) for node in pool.inputs.values()):
        models = renderers(pool, plan.context)
        for file, prompts in read.items():
            changes = shortened([prompt.messages for prompt in prompts], models, limit_of(pool))
            read[file] = limited(prompts, changes)
    return read


def _chosen(plan: Plan, slices: Node) -> Mapping[str, Sequence[str]] | None:
    """Choose the problems of slices of data sources; None before a script has made the problems."""
    from verl_s2d.data.problems import read_problems
    from verl_s2d.data.slices import slices_of

    if (train := train_file(plan, slices)) is None:
        return None
    columns = None if train.is_relative_to(plan.context.run_dir) else plan.recipe.data.columns
    problems = read_problems(train, key="data.train", columns=columns)
    changes = limits_to_come(plan, slices)([problem.messages for problem in problems])
    return slices_of(limited(problems, changes), **slices_settings(slices))


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
    models = renderers(source, plan.context)
    return lambda prompts: shortened(prompts, models, limit_of(source))


def _to_drop(plan: Plan, slices: Node, train: Path) -> int:
    if plan.recipe.data.overlong_prompts != DROP:
        return 0
    from verl_s2d.data.problems import read_problems

    problems = read_problems(train, key="data.train", columns=plan.recipe.data.columns)
    changes = limits_to_come(plan, slices)([problem.messages for problem in problems])
    return sum(messages is None for messages in changes.values())


def _built(plan: Plan, node: Node) -> bool:
    return is_built(node, plan.context.directory(node))
