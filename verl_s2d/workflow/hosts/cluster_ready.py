"""Report whether the Ray cluster of RAY_ADDRESS can take a stage now.

    python -m verl_s2d.workflow.hosts.cluster_ready DEMAND RUN_DIRECTORY

DEMAND is a ray_places.Demand as JSON. With an empty RUN_DIRECTORY the nodes' software and files are not checked.

Exit codes: 0 ready; NOT_YET not ready, but waiting may help; NEVER cannot become ready. The last line gives the reason.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_s2d.workflow.hosts.external_cluster import NEVER, NOT_YET
from verl_s2d.workflow.hosts.ray_places import ACCELERATOR, Demand, fitting_groups, lacking_cpus

_ANSWER_SECONDS = 60


def _site(run_dir: str) -> tuple[bool, str | None]:
    """Return (run directory exists, version of the plugin) of the node this runs on."""
    try:
        return Path(run_dir).is_dir(), version("verl-s2d")
    except PackageNotFoundError:
        return Path(run_dir).is_dir(), None


def never(nodes: list[dict], demand: Demand) -> str | None:
    """Name what waiting cannot mend: too few CPUs on a node, once all nodes have joined."""
    by_accelerator = sum(int(node["Resources"].get(ACCELERATOR, 0) // demand.per_node) for node in nodes)
    return lacking_cpus(nodes, ACCELERATOR, demand) if by_accelerator >= demand.nodes else None


def not_yet(nodes: list[dict], demand: Demand) -> str | None:
    """Name what waiting may mend: nodes that have not joined, or resources that the stage before still holds."""
    groups, workers = fitting_groups(nodes, ACCELERATOR, demand), demand.nodes * demand.per_node
    if groups < demand.nodes:
        cpus = f"{demand.per_node} {ACCELERATOR}s and the CPUs for them"
        return f"{groups} of {demand.nodes} node(s) with {cpus} are there"
    free = int(ray.available_resources().get(ACCELERATOR, 0))
    if free < workers:
        return f"{free} of {workers} {ACCELERATOR}s are free"
    try:
        ray.get_actor("TransferQueueController", namespace="transfer_queue")
    except ValueError:
        return None
    # TransferQueue has one name in the whole cluster: a stage would join the other training's queue.
    return "another verl training is running on it (it has verl's TransferQueue)"


def sites(nodes: list[dict], run_dir: str) -> tuple[int, str]:
    """Return (exit code, reason) after asking each node for its run directory and software."""
    asked = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_site).options(num_cpus=0, scheduling_strategy=here, max_retries=0)
        asked.append((node["NodeManagerAddress"], task.remote(run_dir)))
    mine = version("verl-s2d")
    for address, answer in asked:
        try:
            there, found = ray.get(answer, timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError as error:  # the node was lost since the list was read
            return NOT_YET, f"node {address} does not answer ({type(error).__name__})"
        if found != mine:
            return NEVER, f"node {address} has verl-s2d {found}, this one {mine}: install the same on all nodes"
        if not there:
            return NEVER, f"node {address} does not see {run_dir}: put the run directory on storage that all share"
    return 0, ""


def main(demand: Demand, run_dir: str) -> int:
    ray.init(log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if problem := never(nodes, demand):
        print(problem)
        return NEVER
    if problem := not_yet(nodes, demand):
        print(problem)
        return NOT_YET
    if not run_dir:
        return 0
    code, problem = sites([node for node in nodes if node["Resources"].get(ACCELERATOR, 0) >= demand.per_node], run_dir)
    print(problem)
    return code


if __name__ == "__main__":
    sys.exit(main(Demand(**json.loads(sys.argv[1])), sys.argv[2]))
