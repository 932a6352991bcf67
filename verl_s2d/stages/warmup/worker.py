"""Train the student in stage 2a's worker: verl's engine, with forward-only engines for the frozen models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.engine_workers import Dispatch, TrainingWorkerConfig

from verl_s2d.platforms.process_group import initialize_process_group
from verl_s2d.signals.in_verl.aggregation import TokenMean
from verl_s2d.signals.in_verl.routed_rows import means
from verl_s2d.stages.shared.distilled_worker import DistilledWorker
from verl_s2d.stages.warmup.config_checks import read_warmup_settings
from verl_s2d.teachers.frozen_engines import distinct, frozen_workers


class WarmupWorker(DistilledWorker):
    """Trains the student towards the teacher, with one forward pass of each frozen model per micro-batch.

    Args:
        config: configuration of the student's worker.
        settings: the section `s2d`.
        vocab_size: size of the shared vocabulary without padding.
    """

    def __init__(self, config: TrainingWorkerConfig, *, settings: Mapping[str, Any], vocab_size: int):
        initialize_process_group()
        self._settings, self._vocab_size = read_warmup_settings(settings), vocab_size
        super().__init__(config, skip_limit=self._settings.skip_limit)
        frozen = dataclasses.replace(
            config, engine_config=dataclasses.replace(config.engine_config, forward_only=True), profiler_config=None
        )
        self.frozen = frozen_workers(frozen, self._settings.models)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        super().reset()
        for worker in distinct(self.frozen):
            worker.reset()
        self.learn_from(
            self.frozen, self._settings, vocab_size=self._vocab_size, aggregate=TokenMean(), prefix="train/"
        )

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """Run verl's training step; reduce its metrics over the whole batch."""
        output = super().train_batch(data)
        if output is not None:
            metrics = tu.get(output, "metrics")
            metrics["train/skipped_updates"] = metrics.pop("skipped_updates")
            for name, values in metrics.items():
                if isinstance(values, list) and isinstance(values[0], Metric):
                    metrics[name] = Metric.aggregate_dp(values)
                elif isinstance(values, Metric):
                    metrics[name] = values.aggregate()
            if (router := self._settings.router) is not None:
                of_teachers = means(metrics, "train/", tuple(router.models))
                metrics |= {f"train/{name}": value for name, value in of_teachers.items()}
            metrics["train/teacher_scored_tokens"] = round(metrics["train/teacher_scored_tokens"])
        return output
