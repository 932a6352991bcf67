"""Join or start the Ray cluster of a training command that is its own driver, as verl's main_ppo does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from verl.plugin.platform import get_platform
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import actor_environment
from verl_s2d.recipe.servers import Servers
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand, Node, fitting_groups

_ON_CPU = "On a machine without an accelerator add what `verl-s2d overrides cpu` prints"


def join_ray(config: DictConfig) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one, whose GPUs are logical on a CPU.

    `ray_kwargs.ray_init` goes to ray.init; its runtime_env overrides verl's.
    """
    if ray.is_initialized():
        return
    given = OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True)
    own = {"env_vars": actor_environment(config.trainer.device)}
    runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(config), own, given.pop("runtime_env", None) or {})
    arguments = {key: value for key, value in given.items() if value is not None}
    if config.trainer.device == "cpu" and not os.environ.get("RAY_ADDRESS") and "address" not in arguments:
        # Logical resources: on a machine with few cores the workers share them.
        arguments.setdefault("num_gpus", config.trainer.n_gpus_per_node)
        arguments.setdefault("num_cpus", config.trainer.n_gpus_per_node + 1)
    ray.init(runtime_env=OmegaConf.to_container(runtime_env), **arguments)


def nodes_of_command(config: DictConfig) -> list[Node]:
    """List the nodes of the cluster that main_ppo will join or start.

    A cluster is joined for a moment. One that is to be started is described by Ray's own count of this machine, or, in
    a version of Ray that has it elsewhere, started for a moment.
    """
    given = OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True)
    given.pop("runtime_env", None)
    with contextlib.suppress(ImportError):
        from ray._private.resource_and_label_spec import ResourceAndLabelSpec
        from ray._private.services import canonicalize_bootstrap_address

        if canonicalize_bootstrap_address(given.get("address"), given.get("_temp_dir")) is None:
            counted = {name: given.get(name) for name in ("num_cpus", "num_gpus", "resources")}
            resources = ResourceAndLabelSpec(**counted).resolve(is_head=True).to_resource_dict()
            return [{"NodeID": "", "NodeManagerAddress": "this machine", "Resources": resources}]
    ray.init(**{**given, "log_to_driver": False, "include_dashboard": False})
    try:
        return [node for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def require_rl_places(config: DictConfig, nodes: Sequence[Node]) -> None:
    """Check that a cluster can hold what a main_ppo command starts: verl waits for missing places without a limit.

    Args:
        config: verl's configuration, with the section `s2d` of stage 2b if it has one.
        nodes: entries of `ray.nodes()`.

    Raises:
        UserError: too few accelerators for the workers and servers, or too few CPUs for them and verl's helper actors.
    """
    accelerator, trainer = get_platform().ray_resource_name(), config.trainer
    demand, served = rl_demand(config), _served_gpus(config.get("s2d") or {})
    workers = demand.nodes * demand.per_node + served
    wanted = demand.cpus(demand.storage_units) + demand.cpus_per_worker * (workers - demand.per_node)
    found = {kind: sum(node["Resources"].get(kind, 0) for node in nodes) for kind in (accelerator, "CPU")}
    if found[accelerator] < workers:
        raise UserError(
            f"verl places its workers on {workers} {accelerator}(s), and Ray has {found[accelerator]:g}: they would be "
            "waited for without a limit.",
            key="trainer.n_gpus_per_node",
            value=trainer.n_gpus_per_node,
            remedy=f"{_ON_CPU}; on others lower it or trainer.nnodes, or join a larger cluster (RAY_ADDRESS).",
        )
    if found["CPU"] < wanted or fitting_groups(nodes, accelerator, demand) < demand.nodes:
        raise UserError(
            f"verl's workers and TransferQueue hold {wanted} of the CPUs that Ray counts ({demand.cpus_per_worker} a "
            f"worker, {demand.storage_units} storage units, 2 for their controller and helpers), and Ray has "
            f"{found['CPU']:g} on {len(nodes)} node(s): they would be waited for without a limit.",
            key="ray_kwargs.ray_init.num_cpus",
            value=config.ray_kwargs.ray_init.get("num_cpus"),
            remedy=f"{_ON_CPU}, on others what `verl-s2d overrides gpu` prints; offer more of them to a cluster with "
            "`ray start --num-cpus`: CPUs are bookkeeping, and may be more than there are cores.",
        )


def rl_demand(config: DictConfig) -> Demand:
    """Read the CPUs and accelerators that a main_ppo command holds from verl's configuration."""
    queue = config.transfer_queue.backend
    simple = queue.SimpleStorage if queue.storage_backend == "SimpleStorage" else {}
    return Demand(
        config.trainer.nnodes,
        config.trainer.n_gpus_per_node,
        cpus_per_worker=RL_CPUS_PER_WORKER,
        storage_units=simple.get("num_data_storage_units", 0),
        storage_resource=simple.get("required_node_resource"),
    )


def _served_gpus(section: Any) -> int:
    """Count the GPUs of frozen models on servers; equal checkpoints share theirs."""
    models = [*(section.get("models") or {}).values(), *filter(None, [section.get("teacher")])]
    served = {model.get("path"): model.get("server") or {} for model in models if model.get("placement") == "server"}
    return sum(Servers(**server).gpus for server in served.values())


def require_cpu_platform(config: DictConfig) -> None:
    """Check that a command for device `cpu` runs on verl's platform `cpu`; verl would silently change the device.

    Raises:
        UserError: VERL_PLATFORM=cpu is not in the environment.
    """
    if config.trainer.device == "cpu" and get_platform().device_name != "cpu":
        raise UserError(
            f"verl runs on its platform for {get_platform().device_name} here and would change this key to that device",
            key="trainer.device",
            value="cpu",
            remedy="set VERL_PLATFORM=cpu in the environment",
        )


def require_places(nodes: int, per_node: int) -> None:
    """Check that the cluster can hold the workers: verl would wait for missing places without a limit.

    Raises:
        UserError: fewer than `nodes` nodes have `per_node` accelerators and as many CPUs.
    """
    accelerator = get_platform().ray_resource_name()
    found = [node for node in ray.nodes() if node["Alive"]]
    if fitting_groups(found, accelerator, Demand(nodes, per_node)) < nodes:
        largest = max((int(node["Resources"].get(accelerator, 0)) for node in found), default=0)
        raise UserError(
            f"the workers need {nodes} node(s) with {per_node} {accelerator}(s) and CPUs each; the Ray cluster has "
            f"{len(found)} node(s), the largest with {largest} {accelerator}(s)",
            key="trainer.n_gpus_per_node",
            value=per_node,
            remedy="lower it or trainer.nnodes, join a larger cluster (RAY_ADDRESS), or add what `verl-s2d overrides "
            "cpu --stage warmup` prints on a machine without an accelerator",
        )
