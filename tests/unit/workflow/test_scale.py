"""Planning costs in proportion to the graph: counted in executed bytecodes, which do not depend on the machine."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.workflow.project import write_project
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.command_text import plan_text, status_text
from verl_s2d.report.views import plan_view, status_view
from verl_s2d.stages import stages
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.graph import Node, ancestors, build_order, users_of

ALLOWED_GROWTH = 1.35
"""Of the cost a node when the graph grows eightfold: a heap's logarithm stays below it, a square would be 8."""

GRPO, SCRIPT, SLICES = (stages()[kind] for kind in ("grpo", "script", "slices"))


def bytecodes(act: Callable[..., Any], *arguments: Any) -> int:
    """Count the bytecodes of this project and the standard library that `act(*arguments)` executes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act(*arguments)
    finally:
        sys.settrace(before)
    return count


def chain(count: int) -> list[Node]:
    """Each node reads the one before; one target."""
    node = Node(SCRIPT, "n", {})
    for i in range(count):
        node = Node(GRPO, "n", {"i": i}, {"model": node})
    return [node]


def star(count: int) -> list[Node]:
    """All read the same node; all are targets."""
    shared = Node(SCRIPT, "n", {})
    return [Node(GRPO, "n", {"i": i}, {"model": shared}) for i in range(count)]


def layers(count: int) -> list[Node]:
    """Layers of 20 nodes; each reads three of the layer before. The last layer's are targets."""
    randomness = random.Random(0)
    layer = [Node(SCRIPT, "n", {"i": i}) for i in range(20)]
    for depth in range(count // 20):
        layer = [
            Node(
                GRPO,
                "n",
                {"i": i, "depth": depth},
                {f"r{j}": n for j, n in enumerate(randomness.sample(layer, 3))},
            )
            for i in range(20)
        ]
    return layer


@pytest.mark.parametrize("shape", [chain, star, layers])
@pytest.mark.parametrize("act", [build_order, users_of])
def test_the_cost_of_a_node_does_not_grow_with_the_graph(shape, act):
    small, large = (bytecodes(act, shape(n)) / n for n in (250, 2000))
    assert large <= ALLOWED_GROWTH * small


def test_the_cost_of_a_recipe_grows_with_its_seeds_and_no_faster(tmp_path):
    recipe = load_recipe(write_project(tmp_path))

    def show(seeds: int) -> None:
        plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["all"], seeds=list(range(seeds)))
        plan_text(plan_view(plan), overrides=True)
        status_text(status_view(plan))
        plan.missing()

    show(1)  # what is read once, such as the overlays
    small, large = (bytecodes(show, n) / n for n in (2, 16))
    assert large <= ALLOWED_GROWTH * small


def test_a_chain_of_ten_thousand_is_no_deeper_than_pythons_stack():
    (target,) = chain(10_000)
    assert len(target.digest) == 64 and len(ancestors(target)) == 10_001
    order = build_order(chain(10_000))
    assert [n.settings.get("i", -1) for n in order] == list(range(-1, 10_000))


def test_users_are_the_targets_that_are_built_from_a_node():
    shared, other = Node(SCRIPT, "n", {}), Node(SLICES, "n", {})
    a, b = (
        Node(GRPO, "a", {"x": 1}, {"m": shared}),
        Node(GRPO, "b", {"x": 2}, {"m": shared, "s": other}),
    )
    users = users_of([a, b, a])
    assert users == {shared.digest: [0, 1, 2], other.digest: [1], a.digest: [0, 2], b.digest: [1]}
