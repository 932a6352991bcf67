"""Run the frozen models in verl's workers, in place of the reference policy.

verl time-shares a frozen forward-only engine (`ref`) with the actor and loads the actor's own checkpoint into it. These
workers load the signal's first role, the teacher, and build an engine for each further role. Offload, packing and
parallelism are verl's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorkerConfig

from verl_s2d.signals.in_verl.aggregation import ResponseMean
from verl_s2d.stages.opd.config import ROLE, read_opd_settings
from verl_s2d.stages.shared.distilled_worker import DistilledWorker, GuardedWorker
from verl_s2d.stages.shared.rollout_worker import RolloutWorker
from verl_s2d.teachers.frozen_engines import FrozenWorker, distinct, frozen_workers
from verl_s2d.teachers.model_pair import real_vocabulary
from verl_s2d.teachers.own_prompt import with_own_prompts
from verl_s2d.teachers.refresh import copy_weights, load_weights, save_weights
from verl_s2d.teachers.router import TEACHER


class StudentTeacherWorker(RolloutWorker):
    """Actor, rollout and frozen models in one worker. Reads `s2d` from the actor_rollout_ref section."""

    def __init__(self, config, role: str, **kwargs):
        super().__init__(config=config, role=role, **kwargs)
        self._settings = read_opd_settings(config.s2d)
        self._frozen: dict[str, FrozenWorker] = {}
        self.ref_worker_cls = self._build_frozen
        self.actor_worker_cls = partial(
            DistilledWorker if self._settings.is_loss else GuardedWorker, skip_limit=self._settings.skip_limit
        )

    def _build_frozen(self, config: TrainingWorkerConfig) -> FrozenWorker:
        """Build the frozen models when verl builds its reference; return the first, which verl initialises."""
        asked = self._settings.asked(self.config.model)
        colocated = {role: model for role, model in asked.items() if model.servers is None}
        self._frozen = frozen_workers(config, colocated, self._settings.apart)
        first, *others = distinct(self._frozen)
        for worker in others:
            worker.reset()
        return first

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        if self._settings.is_loss:
            actor, student = self.config.actor, self.actor.model_config
            frozen = {role: self._frozen[role] for role in self._settings.models if role in self._frozen}
            configurations = [worker.model_config.hf_config for worker in distinct(frozen)]
            self.actor.learn_from(
                frozen,
                self._settings,
                vocab_size=real_vocabulary(student.tokenizer, student.hf_config, *configurations),
                aggregate=ResponseMean(actor.loss_agg_mode, actor.get("loss_scale_factor")),
                prefix="actor/",
                own_prompts=self._settings.own_prompts,
            )

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="ref"))
    def compute_ref_log_prob(self, data: TensorDict) -> TensorDict:
        """Compute verl's `log_probs` under the frozen model in the role that the batch names, the first by default."""
        role, first = tu.get_non_tensor_data(data, key=ROLE, default=None), self.ref
        self.ref = first if role is None else self._frozen[role]
        try:
            return super().compute_ref_log_prob(with_own_prompts(data) if role in self._settings.own_prompts else data)
        finally:
            self.ref = first

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def refresh_teacher(self) -> None:
        """Copy the student's weights into the teacher."""
        copy_weights(self.actor.engine, self._frozen[TEACHER].engine)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_teacher(self, folder: str) -> None:
        """Write this rank's part of the teacher."""
        save_weights(self._frozen[TEACHER].engine, Path(folder) / f"rank_{self.rank}.safetensors")

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_teacher(self, folder: str) -> None:
        """Read this rank's part of the teacher."""
        load_weights(self._frozen[TEACHER].engine, Path(folder) / f"rank_{self.rank}.safetensors")
