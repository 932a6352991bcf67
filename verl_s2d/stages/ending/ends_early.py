"""End a verl RL trainer by the rules of `s2d.until`: a mixin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from omegaconf import DictConfig

from verl_s2d.metrics.detectors import validation_score
from verl_s2d.recipe.until import DIVERGENCE, TRAVEL, VALIDATION
from verl_s2d.stages.ending import end_file
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.stages.ending.until_config import read_until


class EndsEarly:
    """A mixin between SavesOnRequest and verl's PPOTrainerSync that saves and ends when a rule holds.

    Every checkpoint stores what the rules have read, so a resumed stage ends at the step at which it would have ended.

    Attributes:
        measured: what the trainer logs for rules (travel, divergence) -> name of the metric.
    """

    measured: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: DictConfig):
        self._end_rule = EndRule(read_until(config, self.measured))
        super().__init__(config)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Validate first when a kill came between the newest checkpoint and the validation of its step."""
        every, step, rule = self.config.trainer.test_freq, self.global_steps, self._end_rule
        due = VALIDATION in rule.reads and rule.reason is None and step > 0 and step % every == 0
        if due and rule.last_value != step:
            self.config.trainer.val_before_train = True
        return super().fit(*args, **kwargs)

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        batch = super().step(metrics, timing_raw)
        self._end_rule.add_step(
            self.global_steps,
            tokens=sum(tag["response_len"] for tag in batch.tags if not tag.get("is_padding", False)),
            travel=metrics.get(self.measured.get(TRAVEL)),
            divergence=metrics.get(self.measured.get(DIVERGENCE)),
        )
        return batch

    def on_step_end(self) -> None:
        # verl's own save of this step, if any, is done; the update of the rollout's weights comes next.
        self._end_if_ruled()
        super().on_step_end()

    def _validate(self) -> dict[str, float]:
        found, rule = super()._validate(), self._end_rule
        if VALIDATION in rule.reads:
            rule.add_validation(self.global_steps, validation_score(found))
            if end_file.checkpoint_directory(self.config.trainer.default_local_dir, self.global_steps).is_dir():
                end_file.store(rule, self.config.trainer.default_local_dir, self.global_steps)
            if rule.reason is not None:
                # Saving takes memory that the rollout's engine has while it is awake, and nothing is sampled any more.
                self.checkpoint_manager.sleep_replicas()
                self._end_if_ruled()
        return found

    def _end_if_ruled(self) -> None:
        if self._end_rule.reason is None:
            return
        if self.config.trainer.save_freq > 0:
            self._save_checkpoint()
        self.total_training_steps = self.global_steps

    def _save_checkpoint(self) -> None:
        end_file.store(self._end_rule, self.config.trainer.default_local_dir, self.global_steps)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        end_file.load(self._end_rule, self.config.trainer.default_local_dir, self.global_steps)
        if self._end_rule.reason is not None:
            self.total_training_steps = self.global_steps
