"""Make a trainer sample the rollouts of a prompt together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf, open_dict
from verl.workers.rollout.replica import RolloutReplicaRegistry

if TYPE_CHECKING:
    from verl_s2d.sampling.in_verl.group_server import GroupReplica

MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
_MANAGER = "verl_s2d.sampling.in_verl.group_rollouts.GroupManager"


class SamplesGroups:
    """A mixin before verl's PPOTrainerSync, for vLLM; a manager that the command names stays."""

    def __init__(self, config: DictConfig):
        rollout = config.actor_rollout_ref.rollout
        if OmegaConf.select(config, MANAGER_KEY) is None and rollout.name == "vllm" and not _disaggregated(config):
            # verl's task runner reads the key from the same config, once the servers have started.
            RolloutReplicaRegistry.register("vllm", _load)
            with open_dict(config):
                OmegaConf.update(config, MANAGER_KEY, _MANAGER, force_add=True)
        super().__init__(config)


def _disaggregated(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "actor_rollout_ref.rollout.disaggregation.enabled"))


def _load() -> type[GroupReplica]:
    from verl_s2d.sampling.in_verl.group_server import GroupReplica

    return GroupReplica
