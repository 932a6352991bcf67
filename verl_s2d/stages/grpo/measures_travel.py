"""Log how far GRPO has travelled from its start: a mixin for rules that read it."""

from __future__ import annotations

import transfer_queue as tq
from omegaconf import DictConfig
from verl.trainer.ppo.utils import Role

from verl_s2d.objectives.travel import travel
from verl_s2d.recipe.until import TRAVEL
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.stages.shared.rollout_worker import RolloutWorker
from verl_s2d.stages.shared.teacher_as_reference import place_worker

METRIC = "s2d/travel"
_FIELDS = ["response_mask", "old_log_probs", "ref_log_prob"]


class MeasuresTravel:
    """A mixin between EndsEarly and verl's PPOTrainerSync: the reference policy is the stage's start.

    Where a KL term asks it anyway the distance costs nothing, otherwise one more frozen engine and a forward pass.
    """

    _end_rule: EndRule
    _travels = False

    def __init__(self, config: DictConfig):
        super().__init__(config)
        self._travels = TRAVEL in self._end_rule.reads
        self.use_reference_policy |= self._travels

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if not self._travels:
            return
        model = self.config.actor_rollout_ref.model
        # With LoRA the reference is the actor without its adapter.
        lora = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or model.get("lora_adapter_path")
        if not lora and Role.ActorRollout in self.role_worker_mapping:
            place_worker(self, RolloutWorker, reference=True)

    def _compute_advantage(self, batch, metrics: dict):
        """Measure the rollouts, then let verl compute GRPO's advantages."""
        if self._travels:
            nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=_FIELDS)
            data = nested.to_padded_tensor()
            metrics[METRIC] = travel(data["ref_log_prob"], data["old_log_probs"], data["response_mask"])
        return super()._compute_advantage(batch, metrics)
