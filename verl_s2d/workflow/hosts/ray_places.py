"""Count the CPUs and accelerators that a stage holds on a Ray cluster, and the stages that a cluster has room for.

Ray counts CPUs, it does not use them; but an actor that asks for one more than there are is waited for without a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ACCELERATOR = "GPU"
RL_CPUS_PER_WORKER = 3
"""verl's ResourcePoolManager reserves so many with each accelerator (`max_colocate_count`)."""
_QUEUE_CPUS = 2
"""One for TransferQueue's controller. One free: Ray places actors that hold none (verl's agent loops, reward workers
and servers) on a node where one is free."""
_UNITS_PER_NODE, _MOST_UNITS = 2, 8
"""verl's default is eight processes, each of which imports torch and holds a CPU; a node's batches fit into two."""

Node = Mapping[str, Any]
"""As `ray.nodes()` lists it: NodeID, NodeManagerAddress, Resources."""


@dataclass(frozen=True)
class Demand:
    """CPUs and accelerators that a stage holds while it runs.

    Attributes:
        nodes, per_node: groups of workers, each group on one node, and accelerators of a group.
        cpus_per_worker: CPUs reserved with each accelerator.
        storage_units: of TransferQueue, a CPU each; 0 for a stage without it.
        storage_resource: Ray resource of the nodes that take storage units; None for all nodes.
    """

    nodes: int
    per_node: int
    cpus_per_worker: int = 1
    storage_units: int = 0
    storage_resource: str | None = None

    def cpus(self, units: int) -> int:
        """CPUs that a node with a group of workers and `units` storage units needs."""
        return self.per_node * self.cpus_per_worker + units + (_QUEUE_CPUS if self.storage_units else 0)


def default_storage_units(nodes: int) -> int:
    """Compute the default number of TransferQueue's storage units for so many nodes."""
    return min(_MOST_UNITS, _UNITS_PER_NODE * nodes)


def most_demanding(demands: Iterable[Demand]) -> Demand:
    """Combine demands of stages that run one after the other: the largest of each number."""
    found = list(demands)
    largest = max(found, key=lambda demand: demand.storage_units)
    return replace(largest, cpus_per_worker=max(demand.cpus_per_worker for demand in found))


def fitting_groups(nodes: Sequence[Node], accelerator: str, demand: Demand) -> int:
    """Count the nodes that can hold a group of workers beside their share of everything else, each as often as it can.

    TransferQueue's controller may come to any node, so each is to have a CPU for it.
    """
    units, groups = _storage_units(nodes, demand), 0
    for node in nodes:
        resources = node["Resources"]
        cpus = resources.get("CPU", 0) - demand.cpus(units[node["NodeID"]])
        more = cpus // (demand.per_node * demand.cpus_per_worker)
        groups += max(0, int(min(resources.get(accelerator, 0) // demand.per_node, 1 + more)))
    return groups


def lacking_cpus(nodes: Sequence[Node], accelerator: str, demand: Demand) -> str | None:
    """Name the first node that has accelerators or storage units of the stage, but too few CPUs, and the remedy.

    None where CPUs are not what is missing.
    """
    units = _storage_units(nodes, demand)
    for node in nodes:
        resources, share = node["Resources"], units[node["NodeID"]]
        group = resources.get(accelerator, 0) >= demand.per_node
        wanted, found = demand.cpus(share) if group else share, resources.get("CPU", 0)
        if found >= wanted:
            continue
        parts = [f"{demand.cpus_per_worker} for each of {demand.per_node} {accelerator}(s)"] if group else []
        parts += [f"{share} for storage units of TransferQueue"] if share else []
        parts += [f"{_QUEUE_CPUS} for its controller and helpers"] if group and demand.storage_units else []
        return (
            f"node {node['NodeManagerAddress']} offers Ray {found:g} CPU(s), and a stage holds {wanted} there "
            f"({', '.join(parts)}): start Ray on it with --num-cpus={wanted} or more, which is bookkeeping and may be "
            "above the number of its cores"
        )
    return None


def _storage_units(nodes: Sequence[Node], demand: Demand) -> dict[str, int]:
    """NodeID -> storage units. TransferQueue deals them out in turn to nodes sorted by id, and insists on the node."""
    ids = sorted(node["NodeID"] for node in nodes)
    takers = sorted(
        node["NodeID"]
        for node in nodes
        if demand.storage_resource is None or node["Resources"].get(demand.storage_resource, 0) > 0
    )
    units = dict.fromkeys(ids, 0)
    for unit in range(demand.storage_units if takers else 0):
        units[takers[unit % len(takers)]] += 1
    return units
