"""verl's workers with the teacher where the reference policy sits.

verl time-shares a frozen forward-only engine (`ref`) with the actor. It always loads the actor's own checkpoint there;
these workers load the teacher's. Everything else (offload, packing, parallelism) is verl's.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.config import HFModelConfig
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

from verl_s2d.signals.aggregation import ResponseMean
from verl_s2d.signals.full_vocabulary import FullVocabularyLoss, Objective
from verl_s2d.stages.shared.distilled_worker import DistilledWorker, GuardedWorker
from verl_s2d.stages.shared.rollout_worker import RolloutWorker
from verl_s2d.teachers.model_pair import real_vocabulary


def teacher_model_config(student: HFModelConfig, path: str, trust_remote_code: bool) -> HFModelConfig:
    """The student's model settings on the teacher's checkpoint.

    Built anew, not copied: fields that verl derives from the path (hf_config, tokenizer, local path) would stay the
    student's.
    """
    settable = {f.name: getattr(student, f.name) for f in dataclasses.fields(student) if f.init}
    kept = ("use_remove_padding", "use_shm", "override_config", "use_liger", "use_fused_kernels", "external_lib")
    settings = {name: settable[name] for name in kept if name in settable}
    return HFModelConfig(path=path, trust_remote_code=trust_remote_code, **settings)


class TeacherWorker(TrainingWorker):
    """A forward-only training worker that swaps the checkpoint for the teacher's before it builds its engine."""

    def __init__(self, config: TrainingWorkerConfig, *, teacher_path: str, trust_remote_code: bool = False):
        model = teacher_model_config(config.model_config, teacher_path, trust_remote_code)
        super().__init__(dataclasses.replace(config, model_config=model))


class StudentTeacherWorker(RolloutWorker):
    """Actor, rollout and teacher in one worker. Reads `s2d` from the actor_rollout_ref section, all keys in it."""

    def __init__(self, config, role: str, **kwargs):
        super().__init__(config=config, role=role, **kwargs)
        settings = config.s2d
        self.ref_worker_cls = partial(
            TeacherWorker, teacher_path=settings.teacher.path, trust_remote_code=settings.teacher.trust_remote_code
        )
        self._exact = settings.objective != "advantage"
        self.actor_worker_cls = partial(
            DistilledWorker if self._exact else GuardedWorker, skip_limit=settings.skip_limit
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        if self._exact:
            self.actor.learn_from(self.ref.engine, self._exact_loss(), self.config.s2d.keep_tokens)

    def _exact_loss(self) -> FullVocabularyLoss:
        settings, actor, student = self.config.s2d, self.config.actor, self.actor.model_config
        objective = Objective(
            settings.objective,
            real_vocabulary(student.tokenizer, student.hf_config, self.ref.model_config.hf_config),
            beta=settings.jsd_beta,
            chunk_tokens=settings.chunk_tokens,
            materialise_logits=settings.materialise_logits,
            keep_tokens=settings.keep_tokens,
            health_top_k=settings.health_top_k,
        )
        aggregate = ResponseMean(actor.loss_agg_mode, actor.get("loss_scale_factor"))
        return FullVocabularyLoss(
            objective, student=self.actor.engine, teacher=self.ref.engine, aggregate=aggregate, prefix="actor/"
        )
