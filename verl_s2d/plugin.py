"""Register this package's platform, trainers and estimator when `import verl` loads the group `verl.plugins`.

verl logs a failing plugin at DEBUG level only, so a failure is logged here as an error, stored in STATUS, and printed
by `verl-s2d check`. Every process pays for this import: what needs a heavy verl module is registered once that module
is imported.
"""

from __future__ import annotations

import importlib
import logging
import os
import traceback

from wrapt import when_imported

from verl_s2d.platforms.plugin_status import STATUS


def _import_after(trigger: str, module: str, what: str) -> None:
    """Import `module`, whose import registers `what`, as soon as `trigger` has been imported."""

    def load(_: object) -> None:
        try:
            importlib.import_module(module)
        except Exception:
            STATUS.error = STATUS.error or traceback.format_exc()
            raise
        STATUS.done.append(what)

    when_imported(trigger)(load)


def _register() -> None:
    from verl_s2d.platforms.cpu import platform  # noqa: F401  (registers the platform)
    from verl_s2d.platforms.environment import cpu_requested
    from verl_s2d.platforms.template_date import VARIABLE, freeze_template_date
    from verl_s2d.workflow.hosts.process import MARKER

    STATUS.done.append("platform cpu")
    _import_after(
        "verl.trainer.ppo.core_algos", "verl_s2d.signals.in_verl.advantage_estimator", "advantage estimator s2d_opd"
    )
    _import_after("verl.trainer.ppo.v1.trainer_sync", "verl_s2d.stages.opd.trainer", "trainer s2d_opd")
    _import_after("verl.trainer.ppo.v1.trainer_sync", "verl_s2d.stages.grpo.trainer", "trainer s2d_grpo")
    _import_after(
        "verl.experimental.agent_loop.single_turn_agent_loop",
        "verl_s2d.stages.opd.prefix_agent_loop",
        "agent loop s2d_prefix",
    )
    _import_after(
        "verl.experimental.reward_loop.reward_loop", "verl_s2d.platforms.reward_loop", "reward tokenizer as configured"
    )
    _import_after("verl.utils.config", "verl_s2d.stages.before_start", "check of verl commands")
    if VARIABLE in os.environ:
        when_imported("transformers.utils.chat_template_utils")(lambda _: freeze_template_date())
    if MARKER in os.environ:
        from verl_s2d.workflow.hosts.ray_job import number_at_random

        when_imported("ray._private.state")(number_at_random)
    if cpu_requested():
        from verl_s2d.platforms.cpu import shims

        STATUS.shims["process_group_backend"] = shims.process_group_backend()
        STATUS.shims["vllm_distribution_name"] = shims.vllm_distribution_name()
        _import_after(
            "verl.workers.engine.fsdp.transformer_impl", "verl_s2d.platforms.cpu.fsdp_engines", "engines fsdp on cpu"
        )


try:
    _register()
except Exception:
    # Not raised: Python drops a module whose import fails, and STATUS with it, and verl would not report it.
    STATUS.error = traceback.format_exc()
    logging.getLogger(__name__).error("verl-s2d did not load; run `verl-s2d check` for the reason.", exc_info=True)
