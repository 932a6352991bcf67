"""The kinds of stages: how settings become a command, what proves it done, what it consumed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_s2d.workflow.stage import StageKind


@cache
def kinds() -> dict[str, StageKind]:
    """Kind name -> what knows about it."""
    from verl_s2d.stages.evaluate.stage import Evaluate
    from verl_s2d.stages.prepare.stage import Script, Slices
    from verl_s2d.stages.shared.verl_trainer import Grpo, Opd
    from verl_s2d.stages.warmup.stage import Rollouts, Warmup

    return {
        "script": Script(),
        "slices": Slices(),
        "grpo": Grpo(),
        "rollouts": Rollouts(),
        "warmup": Warmup(),
        "opd": Opd(),
        "evaluate": Evaluate(),
    }
