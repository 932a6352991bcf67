"""Make a trainer sample the rollouts of a prompt together, and on a CPU in one process less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf, open_dict
from verl.workers.rollout.replica import RolloutReplicaRegistry

if TYPE_CHECKING:
    from verl_s2d.sampling.in_verl.group_server import GroupReplica

MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
_MANAGER = "verl_s2d.sampling.in_verl.group_rollouts.GroupManager"
EXECUTOR_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend"
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size")


class SamplesGroups:
    """A mixin before verl's PPOTrainerSync, for vLLM; a manager that the command names stays."""

    def __init__(self, config: DictConfig):
        rollout = config.actor_rollout_ref.rollout
        if OmegaConf.select(config, MANAGER_KEY) is None and rollout.name == "vllm" and not _disaggregated(config):
            # verl's task runner reads the key from the same config, once the servers have started.
            RolloutReplicaRegistry.register("vllm", _load)
            with open_dict(config):
                OmegaConf.update(config, MANAGER_KEY, _MANAGER, force_add=True)
        if rollout.name == "vllm" and config.trainer.device == "cpu":
            _sample_in_the_engines_process(config)
        super().__init__(config)


def _sample_in_the_engines_process(config: DictConfig) -> None:
    """Spare an engine of one worker the process of that worker, which between two tokens spins for the next.

    vLLM's CPU platform replaces its own name for this executor, `uni`, but not the class. An executor that the command
    names stays.
    """
    alone = all((config.actor_rollout_ref.rollout.get(size) or 1) == 1 for size in _PARALLEL)
    if alone and OmegaConf.select(config, EXECUTOR_KEY) is None:
        with open_dict(config):
            OmegaConf.update(config, EXECUTOR_KEY, ONE_PROCESS, force_add=True)


def _disaggregated(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "actor_rollout_ref.rollout.disaggregation.enabled"))


def _load() -> type[GroupReplica]:
    from verl_s2d.sampling.in_verl.group_server import GroupReplica

    return GroupReplica
