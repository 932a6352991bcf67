"""CPUs and accelerators that the stages of a plan hold on Ray."""

from __future__ import annotations

from collections.abc import Iterable

from verl_s2d.recipe.schema import Cluster
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand
from verl_s2d.workflow.stage import merged_verl

STORAGE_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
STORAGE_RESOURCE = "transfer_queue.backend.SimpleStorage.required_node_resource"
_UNITS_PER_NODE, _MOST_UNITS = 2, 8
"""verl's default is eight processes, each of which imports torch and holds a CPU; a node's batches fit into two."""
_WITH_QUEUE = ("grpo", "opd")


def storage_units(node: Node, cluster: Cluster) -> int:
    """Choose TransferQueue's storage units of a stage: the recipe's number, by default two a node, eight at most."""
    return value_of(merged_verl(node), STORAGE_UNITS, default_storage_units(cluster.nodes))


def default_storage_units(nodes: int) -> int:
    """Compute the default number of TransferQueue's storage units for so many nodes."""
    return min(_MOST_UNITS, _UNITS_PER_NODE * nodes)


def demand(nodes: Iterable[Node], cluster: Cluster) -> Demand:
    """Compute what the most demanding of some stages holds."""
    queued = [node for node in nodes if node.kind in _WITH_QUEUE]
    if not queued:
        return Demand(cluster.nodes, cluster.gpus_per_node)
    largest = max(queued, key=lambda node: storage_units(node, cluster))
    return Demand(
        cluster.nodes,
        cluster.gpus_per_node,
        cpus_per_worker=RL_CPUS_PER_WORKER,
        storage_units=storage_units(largest, cluster),
        storage_resource=value_of(merged_verl(largest), STORAGE_RESOURCE),
    )
