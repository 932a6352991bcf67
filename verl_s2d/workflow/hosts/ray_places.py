"""Count the CPUs and accelerators that a stage holds on a Ray cluster, and the stages that a cluster has room for.

Ray only counts CPUs. An actor that asks for more than are left is waited for without a limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ACCELERATOR = "GPU"
RL_CPUS_PER_WORKER = 3
"""CPUs that verl's ResourcePoolManager reserves with each accelerator (`max_colocate_count`)."""
_QUEUE_CPUS = 2
"""One CPU for TransferQueue's controller, and one free: Ray places actors that hold no CPU (verl's agent loops, reward
workers and servers) only on a node with a free one."""
_HELPERS = 16
"""CPUs offered beyond what a stage holds, one for each of verl's helper processes that start at a time."""
_UNITS_PER_NODE, _MOST_UNITS = 2, 8
"""Storage units per node. verl's default is eight, each a process that imports torch and holds a CPU; two hold a
node's batches."""

Node = Mapping[str, Any]
"""An entry of `ray.nodes()`: NodeID, NodeManagerAddress, Resources."""


@dataclass(frozen=True)
class Demand:
    """CPUs and accelerators that a stage holds while it runs.

    Attributes:
        nodes, per_node: number of worker groups, each on one node; accelerators per group.
        cpus_per_worker: CPUs reserved with each accelerator.
        storage_units: TransferQueue's storage units, one CPU each; 0 for a stage without TransferQueue.
        storage_resource: Ray resource of the nodes that take storage units; None for all nodes.
    """

    nodes: int
    per_node: int
    cpus_per_worker: int = 1
    storage_units: int = 0
    storage_resource: str | None = None

    def cpus(self, units: int) -> int:
        """Count the CPUs that a node with a group of workers and `units` storage units needs."""
        return self.per_node * self.cpus_per_worker + units + (_QUEUE_CPUS if self.storage_units else 0)


def offered_cpus(demand: Demand) -> int:
    """Choose the number of CPUs of a local Ray cluster: CPUs are logical, and verl waits for missing ones for ever."""
    return max(os.cpu_count() or 1, demand.cpus(demand.storage_units) + _HELPERS)


def default_storage_units(nodes: int) -> int:
    """Compute the default number of TransferQueue's storage units for this number of nodes."""
    return min(_MOST_UNITS, _UNITS_PER_NODE * nodes)


def most_demanding(demands: Iterable[Demand]) -> Demand:
    """Combine the demands of stages that run one after another: the maximum of each number."""
    found = list(demands)
    largest = max(found, key=lambda demand: demand.storage_units)
    return replace(largest, cpus_per_worker=max(demand.cpus_per_worker for demand in found))


def fitting_groups(nodes: Sequence[Node], accelerator: str, demand: Demand) -> int:
    """Count the worker groups that fit on the nodes, beside storage units and TransferQueue's controller.

    Ray may place the controller on any node, so each node reserves a CPU for it.
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

    None when no node lacks CPUs.
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
    """Map NodeID -> storage units. TransferQueue assigns them round-robin over nodes sorted by id."""
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
