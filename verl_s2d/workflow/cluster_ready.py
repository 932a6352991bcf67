"""Tells whether the Ray cluster of RAY_ADDRESS can take a stage now.

    python -m verl_s2d.workflow.cluster_ready NODES GPUS_PER_NODE RUN_DIRECTORY

Exit code 0: yes. NOT_YET: no, but waiting may help. NEVER: no, and it will not. The last line says why.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_s2d.ray_places import groups_of_places
from verl_s2d.workflow.given_cluster import NEVER, NOT_YET

_ACCELERATOR = "GPU"
_ANSWER_SECONDS = 60


def _site(run_dir: str) -> tuple[bool, str | None]:
    """Of the node this runs on: whether it has the run directory, and its version of the plugin."""
    try:
        return Path(run_dir).is_dir(), version("verl-s2d")
    except PackageNotFoundError:
        return Path(run_dir).is_dir(), None


def not_yet(nodes: list[dict], wanted: int, per_node: int) -> str | None:
    """What is missing that may still come: nodes, or the end of the stage before."""
    groups = groups_of_places((node["Resources"] for node in nodes), _ACCELERATOR, per_node)
    if groups < wanted:
        return f"{groups} of {wanted} node(s) with {per_node} {_ACCELERATOR}s and as many CPUs are there"
    free = int(ray.available_resources().get(_ACCELERATOR, 0))
    if free < wanted * per_node:
        return f"{free} of {wanted * per_node} {_ACCELERATOR}s are free"
    try:
        ray.get_actor("TransferQueueController", namespace="transfer_queue")
    except ValueError:
        return None
    # It has one name in the whole cluster: a stage would join the queue of whoever is there.
    return "another verl training is running on it (it has verl's TransferQueue)"


def sites(nodes: list[dict], run_dir: str) -> tuple[int, str]:
    """Exit code and reason, by asking each node. One without the run directory or with other software stays so."""
    asked = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_site).options(num_cpus=0, scheduling_strategy=here, max_retries=0)
        asked.append((node["NodeManagerAddress"], task.remote(run_dir)))
    mine = version("verl-s2d")
    for address, answer in asked:
        try:
            there, found = ray.get(answer, timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError as error:  # it was lost a moment ago
            return NOT_YET, f"node {address} does not answer ({type(error).__name__})"
        if found != mine:
            return NEVER, f"node {address} has verl-s2d {found}, this one {mine}: install the same on all nodes"
        if not there:
            return NEVER, f"node {address} does not see {run_dir}: put the run directory on storage that all share"
    return 0, ""


def main(wanted: int, per_node: int, run_dir: str) -> int:
    ray.init(log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if problem := not_yet(nodes, wanted, per_node):
        print(problem)
        return NOT_YET
    code, problem = sites(
        [node for node in nodes if groups_of_places([node["Resources"]], _ACCELERATOR, per_node)], run_dir
    )
    print(problem)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
