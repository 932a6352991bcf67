"""Whether a Ray cluster can hold the workers of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def groups_of_places(nodes: Iterable[Mapping[str, float]], accelerator: str, per_node: int) -> int:
    """How many groups of `per_node` workers fit, each on one node, a worker taking an accelerator and a CPU.

    Args:
        nodes: resources of each node that is alive.
        accelerator: Ray's name of it.
    """
    return sum(int(min(node.get(accelerator, 0), node.get("CPU", 0)) // per_node) for node in nodes)
