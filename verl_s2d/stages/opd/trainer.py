"""Register the trainer `s2d_opd`, stage 2b (on-policy distillation), in verl's V1 registry."""

from __future__ import annotations

import logging

import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.utils.padding import response_to_nested

from verl_s2d.objectives.opd import clip_advantages
from verl_s2d.stages.opd.config import ROLE, OpdConfig, read_opd_config
from verl_s2d.stages.opd.metrics import EXACT_METRICS, advantage_metrics, rollout_metrics, sampled_reverse_kl_metrics
from verl_s2d.stages.opd.served_models import ServedModels
from verl_s2d.stages.shared.distillation import check_models
from verl_s2d.stages.shared.save_on_request import SavesOnRequest
from verl_s2d.stages.shared.teacher_as_reference import place_worker
from verl_s2d.stages.shared.token_budget import StopsAtTokenBudget

logger = logging.getLogger(__name__)

_OF_FIRST = "ref_log_prob"  # verl's name


class _NoVerifier:
    """Replaces verl's reward loop: no response is scored in this stage."""

    reward_loop_worker_handles = None


@register_trainer("s2d_opd")
class OpdTrainer(SavesOnRequest, StopsAtTokenBudget, PPOTrainerSync):
    """verl's synchronous trainer with a teacher as reward.

    The student samples; the teacher scores each sampled token, in the reference engine or on servers. s2d.signal is
    an advantage, by default A_t = beta (log pi_T - log pi_old), in verl's ordinary policy loss; or an exact divergence
    over the vocabulary as the loss, without policy loss and log-prob pass. There is no verifier, no answer, no group
    normalisation and no KL loss to a reference policy, whose place the teacher takes.
    """

    def __init__(self, config: DictConfig):
        self.s2d: OpdConfig = read_opd_config(config)
        student = config.actor_rollout_ref.model.path
        for difference in check_models(student, self.s2d, student_key="actor_rollout_ref.model.path"):
            logger.warning(difference)
        with open_dict(config):
            # verl chooses its replay buffer by comparing the mode with "sync".
            config.trainer.v1.trainer_mode = "sync"
            config.actor_rollout_ref.s2d = self.s2d.written()  # the section that is sent to the workers
            config.reward.num_workers = 0
        super().__init__(config)
        self._served = ServedModels(self.s2d, config)
        self.use_reference_policy = bool(self.s2d.models)
        # verl polls for finished rollouts every two seconds, which is longer than a small step takes.
        self.replay_buffer.poll_interval = min(self.replay_buffer.poll_interval, self.s2d.poll_interval)

    def _init_resource_pool_mgr(self) -> None:
        """Make the workers build a reference engine for the teacher, and add pools for teachers on servers."""
        super()._init_resource_pool_mgr()
        from verl_s2d.stages.opd.worker import StudentTeacherWorker

        place_worker(self, StudentTeacherWorker, reference=bool(self.s2d.colocated))
        self.resource_pool_manager.resource_pool_spec |= self._served.pools()

    def _setup(self) -> None:
        super()._setup()
        self._served.start(self.resource_pool_manager.resource_pool_dict)
        # With LoRA verl would compute the reference's log-probs with the student without its adapter.
        self.ref_in_actor = False
        self.reward_loop_manager = _NoVerifier()

    def _compute_reward_colocate(self, batch, metrics: dict | None = None):
        """Return zero scores: verl calls this for unscored rollouts, and its later steps need a score tensor."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        mask = data["response_mask"]
        zeros = torch.zeros_like(mask.to_padded_tensor(0), dtype=torch.float32)
        fields = TensorDict({"rm_scores": response_to_nested(zeros, mask)}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def _compute_old_log_prob(self, batch, metrics: dict):
        # An exact divergence needs no log-probs, but verl compares them with the sampler's here.
        compared = self.config.actor_rollout_ref.rollout.calculate_log_probs
        return super()._compute_old_log_prob(batch, metrics) if compared or not self.s2d.exact else batch

    def _compute_ref_log_prob(self, batch, metrics: dict):
        """Collect each frozen model's log-probs of the sampled tokens: by verl's reference pass, or from servers."""
        if self.s2d.exact:
            return batch
        asked = {field: role for role, field in reversed(self._log_prob_fields().items())}
        first = asked.pop(_OF_FIRST)
        for field, role in asked.items():
            if self.s2d.models[role].servers is not None:
                self._served.write_log_probs(batch, role, field)
                continue
            batch.extra_info[ROLE] = role
            batch = super()._compute_ref_log_prob(batch, metrics)
            found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[_OF_FIRST])
            found[field] = found.pop(_OF_FIRST)
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=found)
        batch.extra_info.pop(ROLE, None)
        if self.s2d.models[first].servers is None:
            return super()._compute_ref_log_prob(batch, metrics)
        self._served.write_log_probs(batch, first, _OF_FIRST)
        return batch

    def _log_prob_fields(self) -> dict[str, str]:
        """Map role -> the batch field with its model's log-probs; equal models share a field."""
        fields = {}
        for role, model in self.s2d.models.items():
            fields.setdefault(model, f"s2d_log_prob_{role}" if fields else _OF_FIRST)
        return {role: fields[model] for role, model in self.s2d.models.items()}

    def _compute_advantage(self, batch, metrics: dict):
        """Pass the frozen models' log-probs to the registered estimator."""
        if self.s2d.exact:
            return self._write_no_advantage(batch, metrics)
        signal, frozen = self.s2d.signal, self._log_prob_fields()
        fields = ["response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", *signal.reads, *frozen.values()]
        fields = list(dict.fromkeys(fields))
        nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        response_mask = nested["response_mask"]
        data = DataProto(batch=nested.to_padded_tensor())

        written = ["advantages", "returns"]
        correction = self.config.algorithm.get("rollout_correction", None)
        if correction is not None and not correction.get("bypass_mode", False) and "rollout_log_probs" in data.batch:
            data, correction_metrics = compute_rollout_correction_and_add_to_batch(data, correction)
            metrics.update(correction_metrics)
            written += [name for name in ("response_mask", "rollout_is_weights") if name in data.batch]

        answers = {role: data.batch[field] for role, field in frozen.items()}
        estimator = get_adv_estimator_fn(self.config.algorithm.adv_estimator)
        data.batch["advantages"], data.batch["returns"] = estimator(
            token_level_rewards=data.batch["rm_scores"],
            response_mask=data.batch["response_mask"],
            config=self.config.algorithm,
            signal=signal,
            old_log_probs=data.batch["old_log_probs"],
            frozen_log_probs=answers,
            fields={name: data.batch[name] for name in signal.reads},
        )
        measured = signal.measured(answers, data.batch["response_mask"])
        metrics.update({f"s2d/{name}": value for name, value in measured.items()})
        if signal.clip is not None:
            clipped, share = clip_advantages(data.batch["advantages"], data.batch["response_mask"], signal.clip)
            data.batch["advantages"] = data.batch["returns"] = clipped
            metrics["s2d/clipped_advantages"] = share
        mask = data.batch["response_mask"]
        metrics.update(rollout_metrics(mask, scored=bool(frozen)))
        if frozen:
            metrics.update(sampled_reverse_kl_metrics(data.batch["old_log_probs"], data.batch[_OF_FIRST], mask))
        metrics.update(advantage_metrics(data.batch["advantages"], data.batch["response_mask"]))
        output = {name: response_to_nested(data.batch[name], response_mask) for name in written}
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(output, batch_size=len(batch))
        )

    def _write_no_advantage(self, batch, metrics: dict):
        """Write zero advantages: verl's metrics need them, and an exact divergence has none."""
        nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        mask = nested["response_mask"]
        padded = mask.to_padded_tensor(0)
        metrics.update(rollout_metrics(padded, scored=True))
        zeros = response_to_nested(torch.zeros_like(padded, dtype=torch.float32), mask)
        return tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({"advantages": zeros, "returns": zeros}, batch_size=len(batch)),
        )

    def _update_actor(self, batch, metrics: dict):
        """Run verl's update and rename this stage's metrics."""
        batch = super()._update_actor(batch, metrics)
        for ours, theirs in (("s2d/clipped_tokens", "actor/pg_clipfrac"), ("s2d/student_entropy", "actor/entropy")):
            if theirs in metrics:
                metrics[ours] = metrics[theirs]
        for name in EXACT_METRICS:
            if f"actor/{name}" in metrics:
                metrics[f"s2d/{name}"] = metrics.pop(f"actor/{name}")
        return batch
