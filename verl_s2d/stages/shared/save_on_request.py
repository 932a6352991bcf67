"""Save a trainer's checkpoint by the clock, and on request before a stop, besides every save_freq steps."""

from __future__ import annotations

import time
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_s2d.errors import UserError
from verl_s2d.workflow import save_request


def read_save_minutes(config: DictConfig) -> float | None:
    """Read `s2d.save_minutes`, None when it is absent or null.

    Raises:
        UserError: not a number of minutes.
    """
    minutes: Any = OmegaConf.select(config, "s2d.save_minutes", default=None)
    if minutes is not None and (isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes >= 0):
        raise UserError(
            "not a number of minutes",
            key="s2d.save_minutes",
            value=minutes,
            remedy="set it to 0 or more, or to null to save by steps only",
        )
    return minutes


class SaveClock:
    """Minutes since the last checkpoint, or since construction.

    Args:
        minutes: minutes after which a checkpoint is due; None: never.
    """

    def __init__(self, minutes: float | None):
        self._seconds = None if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Note that a checkpoint has been written."""
        self._since = time.monotonic()

    def due(self) -> bool:
        """Report whether the limit has passed."""
        return self._seconds is not None and time.monotonic() - self._since >= self._seconds


class SavesOnRequest:
    """A mixin before verl's PPOTrainerSync and EndsEarly that saves by the clock and on request.

    It saves at the end of a step when `s2d.save_minutes` have passed since the last checkpoint. After
    `save_request.ask` it saves and stops at the end of the current step; a resumed trainer starts with the next step.
    """

    _saved_step: int | None = None

    def __init__(self, config: DictConfig):
        self._save_clock = SaveClock(read_save_minutes(config))
        super().__init__(config)

    def on_step_end(self) -> None:
        # verl's own save of this step, if any, is done.
        asked = save_request.asked(self.config.trainer.default_local_dir)
        if asked or self._save_clock.due():
            self._save_checkpoint()
        if asked:
            self.total_training_steps = self.global_steps
        super().on_step_end()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self._saved_step = self.global_steps

    def _save_checkpoint(self) -> None:
        """Save this step once: verl would count a second save as another checkpoint and delete an older one."""
        if self._saved_step == self.global_steps:
            return
        super()._save_checkpoint()
        self._saved_step = self.global_steps
        self._save_clock.restart()
