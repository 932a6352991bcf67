"""Run further checks when verl validates the configuration of a command, before it starts Ray.

verl starts Ray and, in an actor, TransferQueue before it makes the trainer, so a trainer's own check comes too late for
a cluster that has no room for TransferQueue. Twin: patches/verl-config-checks.patch; does nothing when that is applied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from verl.utils import config as verl_config

from verl_s2d.platforms.plugin_status import STATUS


def add_check(check: Callable[[Any], None]) -> None:
    """Make verl's `validate_config` call `check(config)` before its own checks."""
    if hasattr(verl_config, "register_config_check"):
        verl_config.register_config_check(check)
        STATUS.shims["config_checks"] = "upstream"
        return
    original = verl_config.validate_config

    @functools.wraps(original)
    def validate_config(config: Any, *args: Any, **kwargs: Any) -> None:
        check(config)
        original(config, *args, **kwargs)

    verl_config.validate_config = validate_config
    STATUS.shims["config_checks"] = "shim"
