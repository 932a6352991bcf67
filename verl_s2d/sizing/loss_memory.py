"""The peak between hidden states and loss, in bytes on one GPU. N tokens, V ids of the vocabulary on this GPU.

Policy losses and log-probabilities, as verl's engines make them: logits of b bytes are N V b, and flash attention's
cross entropy writes their gradient into them. With an entropy in the loss they are needed again, so the gradient is
beside them (2 N V b). On a CPU, without flash attention, it is 2 N V b, and 3 in fp32. An entropy that is not compiled
makes fp32 logits, probabilities and their product (3 N V 4). Megatron's Float16Module returns fp32 logits; its cross
entropy keeps fp32 probabilities beside them (2 N V 4), and an entropy copies the logits first (3 N V 4). Fused kernels
hold 512 tokens at a time.

Our divergence (verl_s2d.objectives) never makes logits: c tokens of fp32 logits and probabilities of both sides at a
time, 4 c V 4, with the fp32 gradients of the head, V H 4, and of the student's hidden states, N H 4. From whole logits
(materialise_logits, Megatron) it is both models' logits and a gradient, 3 N V b, beside the same chunk; Megatron's are
fp32.
"""

from __future__ import annotations

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Training

_FUSED_TOKENS = 512
_FP32 = 4


def scoring_peak(training: Training, shape: ModelShape, tokens: int, *, entropy: bool) -> float:
    """Log-probabilities without gradients; verl's actor also reports the entropy, the reference does not."""
    engine = training.actor
    vocabulary, b = shape.vocabulary / engine.tensor, engine.compute_bytes
    if training.fused:
        return min(tokens, _FUSED_TOKENS) * vocabulary * (b + _FP32)
    if engine.backend == "megatron":
        return tokens * vocabulary * _FP32 * (3 if entropy else 2)
    return tokens * vocabulary * (b + (3 * _FP32 if entropy and not training.compiled else 0))


def update_peak(training: Training, shape: ModelShape, teacher: ModelShape | None, tokens: int) -> float:
    """Of a micro-batch's loss and its gradient to the hidden states. On an accelerator flash attention is there."""
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
    # Two buffers of logits; on an accelerator the comparison makes two of probabilities beside them.
    chunk = (4 if engine.accelerator else 2) * min(training.chunk_tokens, tokens) * vocabulary * _FP32
    if training.loss == "logits":
        return 3 * tokens * vocabulary * (_FP32 if engine.backend == "megatron" else b) + chunk
    head = 0 if engine.lora_rank else shape.embedding_parameters * _FP32
    hidden_states = tokens * (shape.hidden * _FP32 + (teacher or shape).hidden * b)
    return chunk + head + hidden_states
