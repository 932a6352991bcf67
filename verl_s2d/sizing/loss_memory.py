"""Estimate the peak between hidden states and loss, in bytes on one GPU, for N tokens and V ids on this GPU.

Policy losses and log-probabilities in verl's engines. Logits of b bytes take N V b. flash-attn's cross entropy writes
the gradient in place; with an entropy in the loss the logits are still needed, and both take 2 N V b. On a CPU, without
flash-attn, they take 2 N V b, and 3 N V b in fp32. An uncompiled entropy adds fp32 logits, probabilities
and their product, 3 N V 4. Megatron's Float16Module returns fp32 logits; its cross entropy adds fp32 probabilities
(2 N V 4 in all), and an entropy copies the logits first (3 N V 4). Fused kernels hold 512 tokens at a time.

Our divergence (verl_s2d.objectives) holds fp32 logits and probabilities of both models for c tokens at a time, 4 c V 4,
and the fp32 gradients of the head, V H 4, and of the student's hidden states, N H 4. From materialised logits
(materialise_logits, Megatron) it holds both models' logits and a gradient, 3 N V b, and the same chunk; Megatron's
logits are fp32.
"""

from __future__ import annotations

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Training

_FUSED_TOKENS = 512
_FP32 = 4


def scoring_peak(training: Training, shape: ModelShape, tokens: int, *, entropy: bool) -> float:
    """Estimate log-probabilities without gradients; `entropy`: verl's actor also reports it, the reference does not."""
    engine = training.actor
    vocabulary, b = shape.vocabulary / engine.tensor, engine.compute_bytes
    if training.fused:
        return min(tokens, _FUSED_TOKENS) * vocabulary * (b + _FP32)
    if engine.backend == "megatron":
        return tokens * vocabulary * _FP32 * (3 if entropy else 2)
    return tokens * vocabulary * (b + (3 * _FP32 if entropy and not training.compiled else 0))


def update_peak(training: Training, shape: ModelShape, teacher: ModelShape | None, tokens: int) -> float:
    """Estimate a micro-batch's loss and its gradient to the hidden states, with flash-attn on an accelerator."""
    engine = training.actor
    vocabulary, b = shape.vocabulary / engine.tensor, engine.compute_bytes
    if training.loss == "policy":
        if training.fused:
            return min(tokens, _FUSED_TOKENS) * vocabulary * (b + _FP32) + tokens * shape.hidden * b
        if engine.backend == "megatron":
            return tokens * vocabulary * _FP32 * (3 if training.entropy else 2)
        copies = 2 if training.entropy else 1
        if not engine.accelerator:
            copies = 3 if b == _FP32 else 2
        plain_entropy = 3 * _FP32 if training.entropy and not training.compiled else 0
        return tokens * vocabulary * (copies * b + plain_entropy)
    # Two buffers of logits; on an accelerator also two of probabilities.
    chunk = (4 if engine.accelerator else 2) * min(training.chunk_tokens, tokens) * vocabulary * _FP32
    if training.loss == "logits":
        return 3 * tokens * vocabulary * (_FP32 if engine.backend == "megatron" else b) + chunk
    head = 0 if engine.lora_rank else shape.embedding_parameters * _FP32
    hidden_states = tokens * (shape.hidden * _FP32 + (teacher or shape).hidden * b)
    return chunk + head + hidden_states
