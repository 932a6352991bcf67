"""Let the rollouts of stage 2b grow from step to step: the trainer's side of the prefix curriculum.

TCOD's single-turn form: step k samples at most start + grow * floor((k - 1) / every) tokens of a response. The length
follows from the global step, so a resumed stage continues with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_s2d.errors import UserError
from verl_s2d.recipe.stage_settings import Prefix

if TYPE_CHECKING:
    from verl_s2d.stages.opd.config import OpdConfig

PREFIX_LOOP = "s2d_prefix"
"""Name of the agent loop in verl's registry."""
_KEY = "s2d.prefix"
_LOOP_KEY, _LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop", "single_turn_agent"
_ENGINES = ("vllm", "sglang")
"""verl's servers that read a limit of tokens from the request."""


def check_prefix(prefix: Prefix, config: DictConfig) -> None:
    """Check a prefix against the rest of a verl command.

    Raises:
        UserError: it has no effect, or verl's rollouts would not keep to it.
    """
    longest, rollout = config.data.max_response_length, config.actor_rollout_ref.rollout
    loop = (rollout.get("agent") or {}).get("default_agent_loop", _LOOP)
    for fits, problem, key, value, remedy in (
        (
            prefix.start < longest,
            "the prefix starts at the longest response, so it has no effect",
            f"{_KEY}.start",
            prefix.start,
            f"less than {longest} (data.max_response_length), or leave the prefix out",
        ),
        (
            loop in (_LOOP, PREFIX_LOOP),
            "the prefix is a limit of verl's single-turn loop, and this one would not read it",
            _LOOP_KEY,
            loop,
            f"leave it out, or leave {_KEY} out",
        ),
        (
            rollout.name in _ENGINES,
            "this engine reads no limit of tokens from a request",
            "actor_rollout_ref.rollout.name",
            rollout.name,
            f"one of {', '.join(_ENGINES)}, or leave {_KEY} out",
        ),
    ):
        if not fits:
            raise UserError(problem, key=key, value=value, remedy=remedy)


class GrowsPrefix:
    """A mixin before verl's PPOTrainerSync that samples with the agent loop of this curriculum and logs its length."""

    s2d: OpdConfig

    def __init__(self, config: DictConfig):
        if self.s2d.prefix is not None:
            with open_dict(config):
                OmegaConf.update(config, _LOOP_KEY, PREFIX_LOOP)
        super().__init__(config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        if self.s2d.prefix is not None and "agent_name" in self.train_dataset.dataframe.column_names:
            raise UserError(
                "the data names an agent loop for each problem, which would not read the prefix",
                key=_KEY,
                value=self.s2d.prefix.model_dump(),
                remedy="remove the column agent_name from data.train_files, or leave the prefix out",
            )

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        if self.s2d.prefix is not None:
            longest = self.config.data.max_response_length
            metrics["s2d/prefix_tokens"] = min(self.s2d.prefix.tokens(global_steps), longest)
