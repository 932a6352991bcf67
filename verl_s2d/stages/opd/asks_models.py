"""Ask the frozen models of stage 2b about the sampled tokens: in reference engines, or on servers."""

from __future__ import annotations

import transfer_queue as tq
from omegaconf import DictConfig

from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.opd.config import ROLE, OpdConfig
from verl_s2d.stages.opd.prompt_renderer import TeacherPrompts
from verl_s2d.stages.opd.routed_teachers import (
    ask_each,
    write_teachers,
)
from verl_s2d.stages.opd.served_models import ServedModels
from verl_s2d.stages.shared.teacher_as_reference import place_worker
from verl_s2d.teachers.router import TEACHER

OF_FIRST = "ref_log_prob"
"""Batch field of the first model's log-probs, by verl's name."""


class AsksModels:
    """A mixin before verl's PPOTrainerSync: frozen models in the place of the reference policy.

    verl's reference pass runs once for each model in its workers; models on servers are asked from the driver.
    """

    s2d: OpdConfig

    def __init__(self, config: DictConfig):
        self._served = ServedModels(self.s2d, config)
        self._served.check()
        self._frozen = self.s2d.asked(config.actor_rollout_ref.model)
        super().__init__(config)
        self.use_reference_policy = bool(self._frozen)

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
        self._teacher_prompts = TeacherPrompts(self.s2d, self.config) if self.s2d.own_prompts else None

    def _balance_batch(self, batch, metrics: dict, *args, **kwargs):
        """Add the teacher's own prompts, before verl fills the batch up with padding."""
        if self._teacher_prompts is not None:
            self._teacher_prompts.write(batch)
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _compute_ref_log_prob(self, batch, metrics: dict):
        """Collect each frozen model's log-probs of the sampled tokens: by verl's reference pass, or from servers."""
        if isinstance(self.s2d.signal, TopK):
            self._served.write_top_k(batch, *self.s2d.models)
        router = self.s2d.router
        if router is not None and self.s2d.is_loss:
            write_teachers(router, batch)
        asked = {field: role for role, field in reversed(self._log_prob_fields().items())}
        first = asked.pop(OF_FIRST, None)
        for field, role in asked.items():
            if self._frozen[role].servers is not None:
                self._served.write_log_probs(batch, role, field)
                continue
            batch.extra_info[ROLE] = role
            batch = super()._compute_ref_log_prob(batch, metrics)
            found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[OF_FIRST])
            found[field] = found.pop(OF_FIRST)
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=found)
        verl = super()._compute_ref_log_prob

        def ask(role: str, rollouts) -> None:
            if self._frozen[role].servers is not None:
                self._served.write_log_probs(rollouts, role, OF_FIRST)
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
            fields.setdefault(kind, f"s2d_log_prob_{role}" if fields else OF_FIRST)
        return {role: fields[kind] for role, kind in asked.items()}
