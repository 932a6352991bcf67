"""verl's workers with the teacher where the reference policy sits.

verl time-shares a frozen forward-only engine (`ref`) with the actor. It always loads the actor's own checkpoint there;
these workers load the teacher's. Everything else (offload, packing, parallelism) is verl's.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from verl.workers.config import HFModelConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker, TrainingWorkerConfig


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


class StudentTeacherWorker(ActorRolloutRefWorker):
    """Actor, rollout and teacher in one worker. Reads `s2d.teacher` from the actor_rollout_ref section."""

    def __init__(self, config, role: str, **kwargs):
        super().__init__(config=config, role=role, **kwargs)
        teacher = config.s2d.teacher
        self.ref_worker_cls = partial(
            TeacherWorker, teacher_path=teacher.path, trust_remote_code=bool(teacher.get("trust_remote_code", False))
        )
