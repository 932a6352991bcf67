"""Join or start the Ray cluster of a training command that is its own driver, as verl's main_ppo does."""

from __future__ import annotations

import os

import ray
from omegaconf import DictConfig, OmegaConf
from verl.plugin.platform import get_platform
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from verl_s2d.errors import UserError
from verl_s2d.workflow.hosts.ray_places import Demand, fitting_groups


def join_ray(config: DictConfig) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one, whose GPUs are logical on a CPU.

    `ray_kwargs.ray_init` goes to ray.init; its runtime_env overrides verl's.
    """
    if ray.is_initialized():
        return
    given = OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True)
    own = {"env_vars": {"VERL_PLATFORM": "cpu"}} if config.trainer.device == "cpu" else {}
    runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(config), own, given.pop("runtime_env", None) or {})
    arguments = {key: value for key, value in given.items() if value is not None}
    if config.trainer.device == "cpu" and not os.environ.get("RAY_ADDRESS") and "address" not in arguments:
        # Logical resources: on a machine with few cores the workers share them.
        arguments.setdefault("num_gpus", config.trainer.n_gpus_per_node)
        arguments.setdefault("num_cpus", config.trainer.n_gpus_per_node + 1)
    ray.init(runtime_env=OmegaConf.to_container(runtime_env), **arguments)


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
            remedy="lower it or trainer.nnodes, join a larger cluster (RAY_ADDRESS), or set trainer.device=cpu and, in "
            "the environment, VERL_PLATFORM=cpu on a machine without an accelerator",
        )
