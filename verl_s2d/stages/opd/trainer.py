"""Register the trainer `s2d_opd`, stage 2b (on-policy distillation), in verl's V1 registry."""

from __future__ import annotations

import logging

import numpy as np
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

from verl_s2d.objectives.opd import clip_advantages, mismatch_gate
from verl_s2d.sampling.in_verl.refills_groups import RefillsGroups
from verl_s2d.sampling.in_verl.samples_groups import SamplesGroups
from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT
from verl_s2d.signals.in_verl.routed_rows import means
from verl_s2d.signals.signal import GROUPS, reads_scores
from verl_s2d.stages.ending.ends_early import EndsEarly
from verl_s2d.stages.opd.asks_models import OF_FIRST, AsksModels
from verl_s2d.stages.opd.config import OpdConfig, read_opd_config
from verl_s2d.stages.opd.logs_health import LogsHealth
from verl_s2d.stages.opd.metrics import EXACT_METRICS, advantage_metrics, rollout_metrics, sampled_reverse_kl_metrics
from verl_s2d.stages.opd.prefix_rollouts import GrowsPrefix
from verl_s2d.stages.opd.prompt_ledger import RecordsPrompts
from verl_s2d.stages.opd.routed_teachers import (
    count_metrics,
    roles_of_rows,
    teacher_metrics,
)
from verl_s2d.stages.opd.teacher_refresh import RefreshesTeacher
from verl_s2d.stages.opd.weighted_problems import WeighsProblems
from verl_s2d.stages.shared.distillation import check_models
from verl_s2d.stages.shared.save_on_request import SavesOnRequest
from verl_s2d.stages.shared.sends_tensors import SendsTensors
from verl_s2d.teachers.data_sources import check_routing

logger = logging.getLogger(__name__)


class _NoVerifier:
    """Replaces verl's reward loop for signals that read no scores."""

    reward_loop_worker_handles = None


@register_trainer("s2d_opd")
class OpdTrainer(
    GrowsPrefix,
    WeighsProblems,
    RecordsPrompts,
    SavesOnRequest,
    RefreshesTeacher,
    EndsEarly,
    LogsHealth,
    AsksModels,
    SamplesGroups,
    RefillsGroups,
    SendsTensors,
    PPOTrainerSync,
):
    """verl's synchronous trainer with a teacher as reward.

    The student samples; the teacher scores each sampled token, in the reference engine or on servers. s2d.signal is
    an advantage, by default A_t = beta (log pi_T - log pi_old), in verl's ordinary policy loss; or an exact divergence
    over the vocabulary as the loss, without policy loss and log-prob pass. There is no group normalisation, and no KL
    loss to a reference policy, whose place the teacher takes. Only for a signal that reads scores the verifier runs.
    """

    def __init__(self, config: DictConfig):
        self.s2d: OpdConfig = read_opd_config(config)
        self.measured = self.s2d.measured
        student = config.actor_rollout_ref.model.path
        for difference in check_models(student, self.s2d, student_key="actor_rollout_ref.model.path"):
            logger.warning(difference)
        if self.s2d.router is not None:
            check_routing(self.s2d.router, config.data.train_files)
        with open_dict(config):
            # verl chooses its replay buffer by comparing the mode with "sync".
            config.trainer.v1.trainer_mode = "sync"
            config.actor_rollout_ref.s2d = self.s2d.written()  # the section that is sent to the workers
            if not reads_scores(self.s2d.signal):
                config.reward.num_workers = 0
        super().__init__(config)
        # verl polls for finished rollouts every two seconds, which is longer than a small step takes.
        self.replay_buffer.poll_interval = min(self.replay_buffer.poll_interval, self.s2d.poll_interval)

    def _setup(self) -> None:
        super()._setup()
        if not reads_scores(self.s2d.signal):
            self.reward_loop_manager = _NoVerifier()

    def _compute_reward_colocate(self, batch, metrics: dict | None = None):
        """Return zero scores: verl calls this for unscored rollouts, and its later steps need a score tensor."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        mask = data["response_mask"]
        zeros = torch.zeros_like(mask.to_padded_tensor(0), dtype=torch.float32)
        fields = TensorDict({"rm_scores": response_to_nested(zeros, mask)}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def _compute_advantage(self, batch, metrics: dict):
        """Pass the frozen models' log-probs to the registered estimator."""
        if self.s2d.is_loss:
            return self._write_no_advantage(batch, metrics)
        signal, frozen = self.s2d.signal, self._log_prob_fields()
        fields = ["response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", *signal.reads, *frozen.values()]
        fields += [PROBLEM_WEIGHT] if self.s2d.problem_weights is not None else []
        fields = list(dict.fromkeys(fields))
        nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        response_mask = nested["response_mask"]
        if GROUPS in fields:
            nested[GROUPS] = torch.from_numpy(np.unique(nested.pop(GROUPS).tolist(), return_inverse=True)[1])
        data = DataProto(batch=nested.to_padded_tensor())

        written = ["advantages", "returns"]
        correction = self.config.algorithm.get("rollout_correction", None)
        if correction is not None and not correction.get("bypass_mode", False) and "rollout_log_probs" in data.batch:
            data, correction_metrics = compute_rollout_correction_and_add_to_batch(data, correction)
            metrics.update(correction_metrics)
            written += [name for name in ("response_mask", "rollout_is_weights") if name in data.batch]

        answers = {role: data.batch[frozen[role]] for role in signal.asks}
        read = {name: data.batch[name] for name in signal.reads}
        estimator = get_adv_estimator_fn(self.config.algorithm.adv_estimator)
        data.batch["advantages"], data.batch["returns"] = estimator(
            token_level_rewards=data.batch["rm_scores"],
            response_mask=data.batch["response_mask"],
            config=self.config.algorithm,
            signal=signal,
            old_log_probs=data.batch["old_log_probs"],
            frozen_log_probs=answers,
            fields=read,
        )
        self._log_travel(data.batch, data.batch["response_mask"], metrics)
        more = {"fields": read} if read else {}
        measured = signal.measured(data.batch["old_log_probs"], answers, data.batch["response_mask"], **more)
        metrics.update({f"s2d/{name}": value for name, value in measured.items()})
        if signal.clip is not None:
            clipped, share = clip_advantages(data.batch["advantages"], data.batch["response_mask"], signal.clip)
            data.batch["advantages"] = data.batch["returns"] = clipped
            metrics["s2d/clipped_advantages"] = share
        if signal.gate is not None:
            compared = (data.batch[name] for name in ("old_log_probs", "rollout_log_probs", "response_mask"))
            factors, metrics["s2d/gated_tokens"] = mismatch_gate(*compared, *signal.gate)
            data.batch["advantages"] = data.batch["returns"] = factors * data.batch["advantages"]
        mask = data.batch["response_mask"]
        metrics.update(rollout_metrics(mask, scored=bool(self.s2d.models)))
        if self.s2d.models:
            metrics.update(sampled_reverse_kl_metrics(data.batch["old_log_probs"], data.batch[OF_FIRST], mask))
        metrics.update(advantage_metrics(data.batch["advantages"], data.batch["response_mask"]))
        if self.s2d.router is not None:
            compared = (data.batch[name] for name in ("advantages", "old_log_probs", OF_FIRST, "response_mask"))
            metrics.update(teacher_metrics(roles_of_rows(self.s2d.router, batch), *compared))
        if self.s2d.problem_weights is not None:
            data.batch["advantages"] = data.batch["returns"] = data.batch["advantages"] * data.batch[PROBLEM_WEIGHT]
        output = {name: response_to_nested(data.batch[name], response_mask) for name in written}
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(output, batch_size=len(batch))
        )

    def _write_no_advantage(self, batch, metrics: dict):
        """Write zero advantages: verl's metrics need them, and an exact divergence has none."""
        fields = ["response_mask", *(["old_log_probs", *self._log_prob_fields().values()] if self.s2d.travel else ())]
        nested = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        mask = nested["response_mask"]
        padded = mask.to_padded_tensor(0)
        metrics.update(rollout_metrics(padded, scored=True))
        if self.s2d.router is not None:
            metrics.update(count_metrics(roles_of_rows(self.s2d.router, batch), padded))
        self._log_travel(nested.to_padded_tensor(), padded, metrics)
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
        if self.s2d.router is not None and self.s2d.is_loss:
            of_teachers = means(metrics, "actor/", tuple(self.s2d.router.models))
            metrics.update({f"s2d/{name}": value for name, value in of_teachers.items()})
        return batch
