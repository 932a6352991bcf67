"""Stage 2a's worker: verl's training engine for the student, and a frozen one for the teacher beside it."""

from __future__ import annotations

import dataclasses

from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.engine_workers import Dispatch, TrainingWorkerConfig

from verl_s2d.platforms.process_group import initialize_process_group
from verl_s2d.signals.aggregation import token_mean
from verl_s2d.signals.full_vocabulary import FullVocabularyLoss, Objective
from verl_s2d.stages.opd.worker import TeacherWorker
from verl_s2d.stages.shared.distilled_worker import DistilledWorker


class WarmupWorker(DistilledWorker):
    """Trains the student towards the teacher, who is asked once per micro-batch."""

    def __init__(
        self,
        config: TrainingWorkerConfig,
        *,
        teacher_path: str,
        trust_remote_code: bool,
        objective: Objective,
        skip_limit: int,
    ):
        initialize_process_group()
        super().__init__(config, skip_limit=skip_limit)
        frozen = dataclasses.replace(
            config, engine_config=dataclasses.replace(config.engine_config, forward_only=True), profiler_config=None
        )
        self._objective = objective
        self.teacher = TeacherWorker(frozen, teacher_path=teacher_path, trust_remote_code=trust_remote_code)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        super().reset()
        self.teacher.reset()
        loss = FullVocabularyLoss(
            self._objective,
            student=self.engine,
            teacher=self.teacher.engine,
            aggregate=token_mean,
            prefix="train/",
        )
        self.learn_from(self.teacher.engine, loss)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """verl's training step; its metrics are those of the whole batch."""
        output = super().train_batch(data)
        if output is not None:
            metrics = tu.get(output, "metrics")
            metrics["train/skipped_updates"] = metrics.pop("skipped_updates")
            for name, values in metrics.items():
                if isinstance(values, list) and isinstance(values[0], Metric):
                    metrics[name] = Metric.aggregate_dp(values)
                elif isinstance(values, Metric):
                    metrics[name] = values.aggregate()
            metrics["train/teacher_scored_tokens"] = round(metrics["train/teacher_scored_tokens"])
        return output
