"""Build frozen models in verl's forward-only engines, beside the student's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

from huggingface_hub import snapshot_download
from verl.workers.config import HFModelConfig
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

from verl_s2d.teachers.frozen_model import FrozenModel


def frozen_model_config(student: HFModelConfig, model: FrozenModel) -> HFModelConfig:
    """Put the student's model settings on another checkpoint.

    Built anew, not copied: fields that verl derives from the path (hf_config, tokenizer, local path) would stay the
    student's.
    """
    settable = {f.name: getattr(student, f.name) for f in dataclasses.fields(student) if f.init}
    kept = ("use_remove_padding", "use_shm", "override_config", "use_liger", "use_fused_kernels", "external_lib")
    settings = {name: settable[name] for name in kept if name in settable}
    # verl knows no revisions.
    path = snapshot_download(model.path, revision=model.revision) if model.revision else model.path
    return HFModelConfig(path=path, trust_remote_code=model.trust_remote_code, **settings)


class FrozenWorker(TrainingWorker):
    """A forward-only training worker that swaps the checkpoint for the frozen model's before it builds its engine."""

    def __init__(self, config: TrainingWorkerConfig, *, model: FrozenModel):
        model_config = frozen_model_config(config.model_config, model)
        # The worker writes into its engine's configuration, which several may be given.
        engine_config = copy.deepcopy(config.engine_config)
        super().__init__(dataclasses.replace(config, model_config=model_config, engine_config=engine_config))


def frozen_workers(config: TrainingWorkerConfig, models: Mapping[str, FrozenModel]) -> dict[str, FrozenWorker]:
    """Build a worker for each different model; returns role -> worker, not initialised.

    Args:
        config: of the student's model and a forward-only engine.
        models: by role.
    """
    workers = {model: FrozenWorker(config, model=model) for model in dict.fromkeys(models.values())}
    return {role: workers[model] for role, model in models.items()}


def distinct(workers: Mapping[str, FrozenWorker]) -> list[FrozenWorker]:
    """List the workers without the repetitions of those that several roles share."""
    return list({id(worker): worker for worker in workers.values()}.values())
