"""A verl trainer that saves and stops at the end of a step when it is asked to."""

from __future__ import annotations

from verl_s2d import save_request


class SavesOnRequest:
    """Mixin before verl's PPOTrainerSync, and before StopsAtTokenBudget: the step in which `save_request.ask` was
    called is the last one, with a checkpoint. A resumed trainer goes on with the next step."""

    _saved_step: int | None = None

    def on_step_end(self) -> None:
        # verl has saved by now if it was going to.
        if save_request.asked(self.config.trainer.default_local_dir):
            if self._saved_step != self.global_steps:
                self._save_checkpoint()
            self.total_training_steps = self.global_steps
        super().on_step_end()

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        self._saved_step = self.global_steps
