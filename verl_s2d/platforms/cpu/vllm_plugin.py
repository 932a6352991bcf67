"""Fit vLLM's processes on a CPU to a trainer: weights that can be updated, and nothing compiled at the first step.

Loaded by vLLM in each of its processes (entry point `vllm.general_plugins`), before a model is built.
"""

from __future__ import annotations

import os


def register() -> None:
    """Change what does not fit on vLLM's CPU platform; does nothing on any other platform."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _keep_weights_updatable()
        _count_uncompiled()


def _keep_weights_updatable() -> None:
    """Keep linear weights as they were loaded.

    vLLM packs linear weights for oneDNN after loading and empties the parameter, so the first weight update finds a
    parameter without its loader. Twin: patches/vllm-cpu-updatable-weights.patch; when applied, only its switch is set.
    """
    import vllm.model_executor.layers.utils as layer_utils

    if hasattr(layer_utils, "cpu_weights_updatable"):
        os.environ.setdefault("VLLM_CPU_UPDATABLE_WEIGHTS", "1")
        return
    layer_utils.dispatch_cpu_unquantized_gemm = _plain_linear


def _plain_linear(layer, remove_weight: bool) -> None:
    """Multiply with the parameter itself instead of a packed copy from load time."""
    import torch

    layer.cpu_linear = torch.nn.functional.linear


def _count_uncompiled() -> None:
    """Run the count of likelier tokens, a comparison and a sum, as it is written.

    vLLM compiles it at an engine's first step that asks for log-probs: seconds with a warm cache, half a minute and a
    C++ compiler without one. Twin: patches/vllm-cpu-uncompiled-count.patch.
    """
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops import logprobs

    written = getattr(logprobs.batched_count_greater_than, "_torchdynamo_orig_callable", None)
    if written is not None:
        logprobs.batched_count_greater_than = sampler.batched_count_greater_than = written
