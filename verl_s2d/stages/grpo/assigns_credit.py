"""Apply `s2d.credit` in a verl trainer: a mixin."""

from __future__ import annotations

import logging

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl.workers.utils.padding import response_to_nested

from verl_s2d.signals.credit.credit import ScoredRollouts
from verl_s2d.signals.in_verl.joint_loss import WEIGHTS
from verl_s2d.signals.in_verl.verdicts import correct_rollouts
from verl_s2d.stages.grpo.credit_config import CreditSettings, read_credit_config
from verl_s2d.stages.opd.metrics import sampled_reverse_kl_metrics
from verl_s2d.stages.shared.teacher_as_reference import place_worker
from verl_s2d.teachers.model_pair import check_tokens

logger = logging.getLogger(__name__)

_FIELDS = ["response_mask", "rm_scores", "old_log_probs", "ref_log_prob", "advantages"]


class AssignsCredit:
    """A mixin before verl's PPOTrainerSync: a teacher in the reference engine, whose log-probs change GRPO's update.

    Without `s2d.credit` the trainer is verl's.
    """

    credited: CreditSettings | None = None

    def __init__(self, config: DictConfig):
        self.credited = read_credit_config(config)
        if self.credited is not None:
            teacher = self.credited.teacher
            for difference in check_tokens(
                config.actor_rollout_ref.model.path,
                teacher.path,
                revision=teacher.revision,
                student_key="actor_rollout_ref.model.path",
                teacher_key="s2d.teacher.path",
            ):
                logger.warning(difference)
            with open_dict(config):
                config.actor_rollout_ref.s2d = self.credited.written()  # the section that is sent to the workers
        super().__init__(config)
        self.use_reference_policy |= self.credited is not None

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if self.credited is not None:
            from verl_s2d.stages.grpo.worker import CreditWorker

            place_worker(self, CreditWorker, reference=True)

    def _setup(self) -> None:
        super()._setup()
        if self.credited is not None:
            # With LoRA verl would compute the reference's log-probs with the student without its adapter.
            self.ref_in_actor = False

    def _compute_advantage(self, batch, metrics: dict):
        """Let verl compute GRPO's advantages, then apply the credit."""
        batch = super()._compute_advantage(batch, metrics)
        return batch if self.credited is None else self._apply(batch, metrics)

    def _apply(self, batch, metrics: dict):
        """Write what the credit changes: advantages, the old log-probs as anchor, weights of the distillation term."""
        nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=_FIELDS)
        response_mask, data = nested["response_mask"], nested.to_padded_tensor()
        rollouts = ScoredRollouts(
            data["old_log_probs"],
            data["ref_log_prob"],
            data["response_mask"],
            correct_rollouts(data["rm_scores"]),
            progress=(self.global_steps - 1) / max(self.total_training_steps - 1, 1),
        )
        credit, advantages = self.credited.credit, data["advantages"]
        metrics.update(sampled_reverse_kl_metrics(rollouts.old_log_probs, rollouts.teacher_log_probs, rollouts.mask))
        metrics.update({f"s2d/{name}": value for name, value in credit.measured(advantages, rollouts).items()})
        changed = {
            "advantages": credit.advantages(advantages, rollouts),
            "old_log_probs": credit.anchor(rollouts),
            WEIGHTS: credit.distillation_weights(rollouts),
        }
        fields = {name: response_to_nested(x, response_mask) for name, x in changed.items() if x is not None}
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch))
        )
