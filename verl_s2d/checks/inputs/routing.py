"""Check that every problem of a stage with several teachers has one, and every teacher a problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.errors import Faults
from verl_s2d.stages.prepare.prompt_pool import LABELLED, PromptPool
from verl_s2d.stages.prepare.slice_sizes import pool_problems, train_file
from verl_s2d.stages.prepare.stage import SOURCES, slices_settings
from verl_s2d.stages.shared.signal_settings import SERVES
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.router import Router
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem


def check_routing_of_slices(
    plan: Plan, nodes: Iterable[Node], files: Mapping[Path, tuple[str, list[Problem]]]
) -> list[str]:
    """Check the slices of stages with several teachers, as far as their problems exist; return the stages' names.

    Args:
        files: file -> (its name in messages, its problems).

    Raises:
        UserError: a data source that nobody serves, or a teacher without a problem.
    """
    faults, checked = Faults(), []
    for node in nodes:
        slices = node.inputs.get("slices")
        if SERVES not in node.settings or slices is None:
            continue
        if (sources := _sources(plan, slices, node.settings["slice"], files)) is None:
            continue
        router = Router({role: FrozenModel(path=role, serves=s) for role, s in node.settings[SERVES].items()})
        with faults.collected():
            router.require_all_served(sources)
        checked.append(node.name)
    faults.raise_found()
    return checked


def _sources(plan: Plan, slices: Node, name: str, files: Mapping[Path, tuple[str, list[Problem]]]) -> list[str] | None:
    """List the data sources of a slice's problems; None before they exist."""
    from verl_s2d.data.slices import slices_of
    from verl_s2d.data.unlabelled import of_sources

    if isinstance(slices.stage, PromptPool):
        part = slices.settings.get(LABELLED)
        labelled = _sources(plan, slices.inputs["slices"], part, files) if part else []
        pool = pool_problems(plan, slices)
        if pool is None or labelled is None:
            return None
        prompts = of_sources([p for members in pool.values() for p in members], slices.settings.get(SOURCES, ()))
        return labelled + [prompt.data_source for prompt in prompts]
    if (path := train_file(plan, slices)) not in files:
        return None
    problems = files[path][1]
    kept = set(slices_of(problems, **slices_settings(slices))[name])
    return [problem.data_source for problem in problems if problem.id in kept]
