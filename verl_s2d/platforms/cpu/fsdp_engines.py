"""Register verl's FSDP engines for device `cpu` in its EngineRegistry."""

from __future__ import annotations

from unittest.mock import patch as temporarily

from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


class _NoOffload:
    """Builds the forward-only module without an offload policy.

    verl offloads every forward-only FSDP2 engine to pinned host memory. On a CPU the parameters are in host memory
    already, and pinning needs an accelerator.
    """

    def _build_fsdp_module(self, module):
        if not self.engine_config.forward_only:
            return super()._build_fsdp_module(module)
        self._is_offload_param = self._is_offload_optimizer = False
        with temporarily.dict(vars(self.engine_config), forward_only=False, offload_policy=False):
            return super()._build_fsdp_module(module)


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CpuFSDPEngineWithLMHead(_NoOffload, FSDPEngineWithLMHead):
    """A language model on FSDP2 over gloo."""


@EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device="cpu")
class CpuFSDPEngineWithValueHead(_NoOffload, FSDPEngineWithValueHead):
    """A value model on FSDP2 over gloo."""
