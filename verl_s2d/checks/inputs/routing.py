"""Check that every problem of a stage with several teachers has one, and every teacher a problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.errors import Faults
from verl_s2d.stages.prepare.slice_sizes import train_file
from verl_s2d.stages.prepare.stage import SOURCES
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
    from verl_s2d.data.slices import slices_of

    faults, checked = Faults(), []
    for node in nodes:
        slices = node.inputs.get("slices")
        if SERVES not in node.settings or slices is None or (path := train_file(plan, slices)) not in files:
            continue
        problems, chosen = files[path][1], slices.settings
        ids = slices_of(problems, chosen["labels"], chosen["seed"], chosen.get(SOURCES, ()))[node.settings["slice"]]
        kept = set(ids)
        router = Router({role: FrozenModel(path=role, serves=s) for role, s in node.settings[SERVES].items()})
        with faults.collected():
            router.require_all_served(problem.data_source for problem in problems if problem.id in kept)
        checked.append(node.name)
    faults.raise_found()
    return checked
