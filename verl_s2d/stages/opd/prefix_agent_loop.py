"""Register verl's agent loop `s2d_prefix`: one turn, cut where the step's prefix ends."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_s2d.recipe.stage_settings import Prefix
from verl_s2d.stages.opd.prefix_rollouts import PREFIX_LOOP


@register(PREFIX_LOOP)
class PrefixAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop, whose request to the engine ends at the prefix: no further token is sampled."""

    asks_once = True

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Sample one response.

        Args:
            sampling_params: those of the engine.
            kwargs: the problem's fields, and `global_steps`, the step that samples it.
        """
        length = min(Prefix(**self.config.s2d.prefix).tokens(kwargs["global_steps"]), self.response_length)
        return await super().run({**sampling_params, "max_tokens": length}, **kwargs)
