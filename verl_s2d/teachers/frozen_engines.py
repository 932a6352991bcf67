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
    """Build a frozen model's configuration from the student's settings and another checkpoint.

    It is constructed, not copied: a copy would keep fields that verl derives from the student's path (hf_config,
    tokenizer, local path).
    """
    settable = {f.name: getattr(student, f.name) for f in dataclasses.fields(student) if f.init}
    kept = ("use_remove_padding", "use_shm", "override_config", "use_liger", "use_fused_kernels", "external_lib")
    settings = {name: settable[name] for name in kept if name in settable}
    # verl has no setting for revisions.
    path = snapshot_download(model.path, revision=model.revision) if model.revision else model.path
    return HFModelConfig(path=path, trust_remote_code=model.trust_remote_code, **settings)


class FrozenWorker(TrainingWorker):
    """A forward-only training worker that swaps the checkpoint for the frozen model's before it builds its engine."""

    def __init__(self, config: TrainingWorkerConfig, *, model: FrozenModel):
        model_config = frozen_model_config(config.model_config, model)
        # The worker writes into its engine's configuration, which several may be given.
        engine_config = copy.deepcopy(config.engine_config)
        super().__init__(dataclasses.replace(config, model_config=model_config, engine_config=engine_config))


def frozen_workers(
    config: TrainingWorkerConfig, models: Mapping[str, FrozenModel], apart: frozenset[str] = frozenset()
) -> dict[str, FrozenWorker]:
    """Build a worker for each distinct checkpoint; return role -> worker, not initialised.

    Args:
        config: the student's configuration with a forward-only engine.
        models: role -> frozen model.
        apart: roles that share no worker with roles outside of this set.
    """
    kinds = {role: (model.checkpoint, role in apart) for role, model in models.items()}
    workers = {kind: FrozenWorker(config, model=kind[0]) for kind in dict.fromkeys(kinds.values())}
    return {role: workers[kind] for role, kind in kinds.items()}


def distinct(workers: Mapping[str, FrozenWorker]) -> list[FrozenWorker]:
    """List each worker once, also those that several roles share."""
    return list({id(worker): worker for worker in workers.values()}.values())
