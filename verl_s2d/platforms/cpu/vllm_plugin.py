"""Keep the weights of vLLM's processes updatable on a CPU, so that a trainer can send new ones.

Loaded by vLLM in each of its processes (entry point `vllm.general_plugins`), before a model is built.
"""

from __future__ import annotations

import os


def register() -> None:
    """Keep linear weights updatable on vLLM's CPU platform; does nothing on any other platform.

    vLLM packs linear weights for oneDNN after loading and empties the parameter, so the first weight update finds a
    parameter without its loader. Twin: patches/vllm-cpu-updatable-weights.patch; when applied, only its switch is set.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import vllm.model_executor.layers.utils as layer_utils

    if hasattr(layer_utils, "cpu_weights_updatable"):
        os.environ.setdefault("VLLM_CPU_UPDATABLE_WEIGHTS", "1")
        return
    layer_utils.dispatch_cpu_unquantized_gemm = _plain_linear


def _plain_linear(layer, remove_weight: bool) -> None:
    """Multiply with the parameter itself instead of a packed copy from load time."""
    import torch

    layer.cpu_linear = torch.nn.functional.linear
