"""Stop a verl trainer after a number of sampled tokens: the key `s2d.token_budget` and a mixin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_s2d.errors import UserError

SAMPLED_TOKENS = "sampled_tokens.json"
"""File in every checkpoint of a trainer with a budget: {"sampled_tokens": tokens sampled up to this step}."""
_SCHEDULE = {"lr_scheduler_type": "constant", "lr_decay_style": "constant", "lr_warmup_steps_ratio": 0}


def read_token_budget(config: DictConfig) -> int | None:
    """Read `s2d.token_budget`; None when it is absent or null.

    Raises:
        UserError: not a number of tokens, or the learning rate follows a schedule over the number of steps, which a
            budget leaves open.
    """
    if OmegaConf.select(config, "s2d.token_budget", default="absent") == "absent":
        return None
    budget = config.s2d.token_budget
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise UserError(
            "not a number of tokens", key="s2d.token_budget", value=budget, remedy="set it to a whole number above 0"
        )
    optim = config.actor_rollout_ref.actor.optim
    for name, fits in _SCHEDULE.items():
        if optim.get(name) not in (fits, None):
            raise UserError(
                "a token budget leaves the number of steps open, and this schedule needs it",
                key=f"actor_rollout_ref.actor.optim.{name}",
                value=optim[name],
                remedy=f"set it to {fits}, or match by verifier_calls or updates",
            )
    return budget


class StopsAtTokenBudget:
    """A mixin before verl's PPOTrainerSync that saves and stops at the first step that reaches the budget.

    Every checkpoint stores the count, so a resumed stage stops at the same step.
    """

    def __init__(self, config: DictConfig):
        self.token_budget = read_token_budget(config)
        self.sampled_tokens = 0
        super().__init__(config)

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        batch = super().step(metrics, timing_raw)
        self.sampled_tokens += sum(tag["response_len"] for tag in batch.tags if not tag.get("is_padding", False))
        return batch

    def on_step_end(self) -> None:
        # verl's own save of this step, if any, is done; the update of the rollout's weights comes next.
        if self._spent():
            every, last = self.config.trainer.save_freq, self.global_steps >= self.total_training_steps
            if every > 0 and not (last or self.global_steps % every == 0):
                self._save_checkpoint()
            self.total_training_steps = self.global_steps
        super().on_step_end()

    def _save_checkpoint(self) -> None:
        if self.token_budget is not None:
            # Written first: verl's tracker, written last, makes a checkpoint complete.
            folder = self._checkpoint(self.global_steps)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SAMPLED_TOKENS).write_text(json.dumps({"sampled_tokens": self.sampled_tokens}))
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.token_budget is not None and self.global_steps > 0:
            saved = json.loads((self._checkpoint(self.global_steps) / SAMPLED_TOKENS).read_text())
            self.sampled_tokens = saved["sampled_tokens"]
            if self._spent():
                self.total_training_steps = self.global_steps

    def _spent(self) -> bool:
        return self.token_budget is not None and self.sampled_tokens >= self.token_budget

    def _checkpoint(self, step: int) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{step}"
