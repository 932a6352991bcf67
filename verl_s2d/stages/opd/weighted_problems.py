"""Give every rollout of stage 2b the weight of its problem: the trainer's side of `s2d.problem_weights`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict

from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT
from verl_s2d.stages.opd.config import OpdConfig


class WeighsProblems:
    """A mixin before verl's PPOTrainerSync that adds the weight to each problem as it is read.

    verl hands a problem's fields on to its rollouts, so the weight reaches the driver's advantages and, in the workers,
    the loss of an exact signal.
    """

    s2d: OpdConfig
    _weights: Mapping[str, float] | None = None

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        if self.s2d.problem_weights is not None:
            problems = [(info or {}).get("index", 0) for info in self.train_dataset.dataframe["extra_info"]]
            self._weights = self.s2d.problem_weights.of(problems, key="data.train_files")

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        if self._weights is not None:
            weights = [self._weights[str(problem)] for problem in batch["index"]]
            batch[PROBLEM_WEIGHT] = torch.tensor(weights).unsqueeze(-1)
        return batch
