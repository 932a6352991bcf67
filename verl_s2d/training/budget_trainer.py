"""GRPO that stops at a number of sampled tokens: the trainer `s2d_token_budget` in verl's V1 registry."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_s2d.errors import UserError
from verl_s2d.training.token_budget import StopsAtTokenBudget, read_token_budget


@register_trainer("s2d_token_budget")
class TokenBudgetTrainer(StopsAtTokenBudget, PPOTrainerSync):
    """verl's synchronous trainer, unchanged but for where it stops (`s2d.token_budget`)."""

    def __init__(self, config: DictConfig):
        if read_token_budget(config) is None:
            raise UserError(
                "this trainer stops at a number of sampled tokens",
                key="s2d.token_budget",
                value=None,
                remedy="add +s2d.token_budget=<tokens>",
            )
        with open_dict(config):
            # verl compares the mode with "sync" to choose its replay buffer; this class is the choice already made.
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)
