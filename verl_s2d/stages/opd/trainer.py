"""Register the trainer `s2d_opd`, stage 2b (on-policy distillation), in verl's V1 registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping

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
from verl_s2d.objectives.travel import travel
from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT
from verl_s2d.signals.in_verl.routed_rows import means
from verl_s2d.signals.signal import GROUPS, reads_scores
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.opd.config import ROLE, START, OpdConfig, read_opd_config
from verl_s2d.stages.opd.health import end_tokens, parse_rate
from verl_s2d.stages.opd.metrics import EXACT_METRICS, advantage_metrics, rollout_metrics, sampled_reverse_kl_metrics
from verl_s2d.stages.opd.prefix_rollouts import GrowsPrefix
from verl_s2d.stages.opd.prompt_renderer import TeacherPrompts
from verl_s2d.stages.opd.routed_teachers import (
    ask_each,
    count_metrics,
    roles_of_rows,
    teacher_metrics,
    write_teachers,
)
from verl_s2d.stages.opd.served_models import ServedModels
from verl_s2d.stages.opd.teacher_refresh import RefreshesTeacher
from verl_s2d.stages.opd.weighted_problems import WeighsProblems
from verl_s2d.stages.shared.distillation import check_models
from verl_s2d.stages.shared.save_on_request import SavesOnRequest
from verl_s2d.stages.shared.teacher_as_reference import place_worker
from verl_s2d.stages.shared.token_budget import StopsAtTokenBudget
from verl_s2d.teachers.data_sources import check_routing
from verl_s2d.teachers.router import TEACHER
from verl_s2d.verifiers.registry import extractor_of

logger = logging.getLogger(__name__)

_OF_FIRST = "ref_log_prob"  # verl's name


class _NoVerifier:
    """Replaces verl's reward loop for signals that read no scores."""

    reward_loop_worker_handles = None


@register_trainer("s2d_opd")
class OpdTrainer(GrowsPrefix, WeighsProblems, SavesOnRequest, RefreshesTeacher, StopsAtTokenBudget, PPOTrainerSync):
    """verl's synchronous trainer with a teacher as reward.

    The student samples; the teacher scores each sampled token, in the reference engine or on servers. s2d.signal is
    an advantage, by default A_t = beta (log pi_T - log pi_old), in verl's ordinary policy loss; or an exact divergence
    over the vocabulary as the loss, without policy loss and log-prob pass. There is no group normalisation, and no KL
    loss to a reference policy, whose place the teacher takes. Only for a signal that reads scores the verifier runs.
    """

    def __init__(self, config: DictConfig):
        self.s2d: OpdConfig = read_opd_config(config)
        student = config.actor_rollout_ref.model.path
        for difference in check_models(student, self.s2d, student_key="actor_rollout_ref.model.path"):
            logger.warning(difference)
        if self.s2d.router is not None:
            check_routing(self.s2d.router, config.data.train_files)
        self._served = ServedModels(self.s2d, config)
        self._served.check()
        with open_dict(config):
            # verl chooses its replay buffer by comparing the mode with "sync".
            config.trainer.v1.trainer_mode = "sync"
            config.actor_rollout_ref.s2d = self.s2d.written()  # the section that is sent to the workers
            if not reads_scores(self.s2d.signal):
                config.reward.num_workers = 0
        self._frozen = self.s2d.asked(config.actor_rollout_ref.model)
        super().__init__(config)
        self.use_reference_policy = bool(self._frozen)
        # verl polls for finished rollouts every two seconds, which is longer than a small step takes.
        self.replay_buffer.poll_interval = min(self.replay_buffer.poll_interval, self.s2d.poll_interval)

    def _init_resource_pool_mgr(self) -> None:
        """Make the workers build a reference engine for the teacher, and add pools for teachers on servers."""
        super()._init_resource_pool_mgr()
        from verl_s2d.stages.opd.worker import StudentTeacherWorker

        colocated = any(model.servers is None for model in self._frozen.values())
        place_worker(self, StudentTeacherWorker, reference=colocated)
        self.resource_pool_manager.resource_pool_spec |= self._served.pools()

    def _setup(self) -> None:
        super()._setup()
        self._served.start(self.resource_pool_manager.resource_pool_dict)
        # With LoRA verl would compute the reference's log-probs with the student without its adapter.
        self.ref_in_actor = False
        if not reads_scores(self.s2d.signal):
            self.reward_loop_manager = _NoVerifier()
        model = self.config.actor_rollout_ref.model
        self._teacher_prompts = TeacherPrompts(self.s2d, self.config) if self.s2d.own_prompts else None
        self._ends = end_tokens(model.path, self.tokenizer, trust_remote_code=model.trust_remote_code)

    def _compute_reward_colocate(self, batch, metrics: dict | None = None):
        """Return zero scores: verl calls this for unscored rollouts, and its later steps need a score tensor."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        mask = data["response_mask"]
        zeros = torch.zeros_like(mask.to_padded_tensor(0), dtype=torch.float32)
        fields = TensorDict({"rm_scores": response_to_nested(zeros, mask)}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def _balance_batch(self, batch, metrics: dict, *args, **kwargs):
        """Measure the parse rate and add the teacher's own prompts, before verl fills the batch up with padding."""
        if self.s2d.parse_rate is not None:
            found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["responses"])
            extract = extractor_of(self.s2d.parse_rate)
            rate = parse_rate(found["responses"].unbind(), self._ends, self.tokenizer, extract)
            metrics.update({} if rate is None else {"s2d/parse_rate": rate})
        if self._teacher_prompts is not None:
            self._teacher_prompts.write(batch)
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _compute_old_log_prob(self, batch, metrics: dict):
        # A loss needs no log-probs, but verl compares them with the sampler's here, and travel reads them.
        read = self.config.actor_rollout_ref.rollout.calculate_log_probs or self.s2d.travel
        return super()._compute_old_log_prob(batch, metrics) if read or not self.s2d.is_loss else batch

    def _compute_ref_log_prob(self, batch, metrics: dict):
        """Collect each frozen model's log-probs of the sampled tokens: by verl's reference pass, or from servers."""
        if isinstance(self.s2d.signal, TopK):
            self._served.write_top_k(batch, *self.s2d.models)
        router = self.s2d.router
        if router is not None and self.s2d.is_loss:
            write_teachers(router, batch)
        asked = {field: role for role, field in reversed(self._log_prob_fields().items())}
        first = asked.pop(_OF_FIRST, None)
        for field, role in asked.items():
            if self._frozen[role].servers is not None:
                self._served.write_log_probs(batch, role, field)
                continue
            batch.extra_info[ROLE] = role
            batch = super()._compute_ref_log_prob(batch, metrics)
            found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[_OF_FIRST])
            found[field] = found.pop(_OF_FIRST)
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=found)
        verl = super()._compute_ref_log_prob

        def ask(role: str, rollouts) -> None:
            if self._frozen[role].servers is not None:
                self._served.write_log_probs(rollouts, role, _OF_FIRST)
            else:
                rollouts.extra_info[ROLE] = role
                verl(rollouts, metrics)

        if first == TEACHER and router is not None:
            ref = self.config.actor_rollout_ref.ref
            micro_batch = None if ref.log_prob_use_dynamic_bsz else ref.log_prob_micro_batch_size_per_gpu
            ranks = max(self.actor_rollout_wg._query_dispatch_info("actor")) + 1
            ask_each(router, batch, ask, micro_batch=micro_batch, ranks=ranks)
        elif first is not None:
            ask(first, batch)
        batch.extra_info.pop(ROLE, None)
        return batch

    def _log_prob_fields(self) -> dict[str, str]:
        """Map role -> the batch field with its model's log-probs; equal models with equal prompts share a field.

        Teachers of some data sources have one field. A loss reads no log-probs, but travel has a field.
        """
        own, fields = self.s2d.own_prompts | self.s2d.apart, {}
        asked = {role: (model, role in own) for role, model in self._frozen.items()}
        if self.s2d.router is not None and not self.s2d.is_loss:
            asked = {TEACHER: None, **{role: kind for role, kind in asked.items() if not kind[0].serves}}
        if self.s2d.is_loss:
            return {role: f"s2d_log_prob_{role}" for role in asked.keys() - self.s2d.models.keys()}
        for role, kind in asked.items():
            fields.setdefault(kind, f"s2d_log_prob_{role}" if fields else _OF_FIRST)
        return {role: fields[kind] for role, kind in asked.items()}

    def _log_travel(self, log_probs: Mapping[str, torch.Tensor], mask: torch.Tensor, metrics: dict) -> None:
        """Log the distance from the start, of which log_probs has padded old_log_probs and the start's field."""
        if self.s2d.travel:
            start = log_probs[self._log_prob_fields()[START]]
            metrics["s2d/travel"] = travel(start, log_probs["old_log_probs"], mask)

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
            metrics.update(sampled_reverse_kl_metrics(data.batch["old_log_probs"], data.batch[_OF_FIRST], mask))
        metrics.update(advantage_metrics(data.batch["advantages"], data.batch["response_mask"]))
        if self.s2d.router is not None:
            compared = (data.batch[name] for name in ("advantages", "old_log_probs", _OF_FIRST, "response_mask"))
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
