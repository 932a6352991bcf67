"""Refuse a plain verl command that would wait for ever, in its driver, before anything expensive starts.

A stage of a recipe is left out: its cluster has been checked.
"""

from __future__ import annotations

import os
from typing import Any

from verl_s2d.platforms.config_hook import add_check

_MODES = ("s2d_opd", "s2d_grpo")
_OF_A_RUN = "VERL_S2D_RUN"
"""workflow.hosts.process.MARKER, whose import would cost every process of verl some time."""


def check_command(config: Any) -> None:
    """Raise UserError where Ray could never place what a command with one of our trainers starts.

    A cluster that verl would join is joined for a moment: only then are its resources known.
    """
    # Imported here, because every process of verl loads this file.
    from hydra.core.hydra_config import HydraConfig

    # hydra's API composes configurations without running a command.
    if not HydraConfig.initialized() or os.environ.get(_OF_A_RUN):
        return
    if config.trainer.get("use_v1", True) and config.trainer.v1.trainer_mode in _MODES:
        from verl_s2d.stages.shared.ray_cluster import nodes_of_command, require_rl_places

        require_rl_places(config, nodes_of_command(config))


add_check(check_command)
