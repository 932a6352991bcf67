"""Define the servers of a frozen model that has GPUs of its own, and the GPUs that they leave to the student."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, FiniteFloat

from verl_s2d.errors import UserError
from verl_s2d.validation import Section

if TYPE_CHECKING:
    from verl_s2d.recipe.cluster_settings import Cluster

Count = Annotated[int, Field(ge=1)]


class Servers(Section):
    """Size and limits of a frozen model's own vLLM servers; verl's names where verl has one.

    Attributes:
        num_replicas: number of servers; a step's sequences are divided among them.
        tensor_model_parallel_size: GPUs of a server, all on one node.
        gpu_memory_utilization: share of each GPU's memory for weights and key-value cache. The rest holds the logits of
            max_num_batched_tokens tokens in float32, several times over: keep it well below 1.
        max_num_batched_tokens: tokens of one forward pass.
        wait_minutes: minutes to wait for the servers to start, and for all answers of a step.
    """

    num_replicas: Count = 1
    tensor_model_parallel_size: Count = 1
    gpu_memory_utilization: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.5
    max_num_batched_tokens: Count = 8192
    wait_minutes: Annotated[FiniteFloat, Field(gt=0)] = 30.0

    @property
    def gpus(self) -> int:
        """Count the GPUs of all servers."""
        return self.num_replicas * self.tensor_model_parallel_size


def gpus_left(cluster: Cluster, servers: Iterable[Servers], key: str) -> tuple[int, int]:
    """Divide a cluster between servers and student; returns the student's (nodes, GPUs of each).

    Servers take whole nodes where they fill some, and otherwise the same number of GPUs of every node.

    Args:
        servers: those of each frozen model.
        key: dotted key of the servers, for messages.

    Raises:
        UserError: the servers leave no GPU, or divide the nodes unevenly.
    """
    taken, nodes, each = sum(model.gpus for model in servers), cluster.nodes, cluster.gpus_per_node
    if taken == 0:
        return nodes, each
    fit = all(model.tensor_model_parallel_size <= each for model in servers)
    if fit and nodes > 1 and taken % each == 0 and taken < nodes * each:
        return nodes - taken // each, each
    if fit and taken % nodes == 0 and taken < nodes * each:
        return nodes, each - taken // nodes
    raise UserError(
        f"The servers take {taken} GPUs, and what they leave of {nodes} x {each} is no equal number on each node.",
        key=key,
        value=taken,
        remedy=f"num_replicas x tensor_model_parallel_size has to be a multiple of {each} or of {nodes}, less than "
        f"{nodes * each}, and a server has to fit on a node: change it, or cluster.nodes and cluster.gpus_per_node.",
    )
