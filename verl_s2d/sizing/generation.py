"""Estimate vLLM's memory on one GPU: weights, KV cache, and the number of full-length sequences that fit."""

from __future__ import annotations

from dataclasses import dataclass

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Rollout

GRAPH_BYTES = 2 << 30
"""An assumption: the part of vLLM's memory that CUDA graphs, NCCL and the process take."""


@dataclass(frozen=True)
class Generation:
    """vLLM's memory in bytes on one GPU, and its engines.

    Attributes:
        share: gpu_memory_utilization times the GPU's memory; vLLM always takes all of it.
        weights: this GPU's shard of the model.
        working: a forward pass of max_num_batched_tokens, and the sampler's logits for max_num_seqs sequences.
        cache: the rest of the share, for keys and values.
        token_bytes: 2 L K D b / (TP PP), keys and values of one token in this GPU's layers. KV heads are replicated if
            they are fewer than the GPUs of an engine (vLLM, PagedAttention).
        longest: tokens of a full-length sequence.
        replicas: number of engines.
        limit: maximum concurrent sequences of one engine, of any length (max_num_seqs).
    """

    share: float
    weights: float
    working: float
    cache: float
    token_bytes: float
    longest: int
    replicas: int
    limit: int

    @property
    def fits(self) -> int:
        """Count the sequences of `longest` tokens that fit one engine's cache at a time."""
        return max(0, int(self.cache // (self.token_bytes * self.longest)))


def generation(rollout: Rollout, shape: ModelShape, longest: int, gpu_bytes: float) -> Generation:
    """Estimate vLLM's memory as its start-up profiles it: weights, one forward pass, and the rest for the cache.

    Weights are parameters / (TP PP) in the rollout's dtype. A pass holds, for each token, the residual stream twice
    and two feed-forward activations; the sampler holds logits and probabilities in fp32.
    """
    gpus, size = rollout.tensor * rollout.pipeline, rollout.dtype_bytes
    weights = shape.parameters * size / gpus
    passing = rollout.batched_tokens * size * (2 * shape.hidden + 2 * shape.intermediate / rollout.tensor)
    working = passing + rollout.sequences * shape.vocabulary * 4 * 2 + GRAPH_BYTES
    share = rollout.utilization * gpu_bytes
    kv_heads = max(shape.kv_heads / rollout.tensor, 1)
    return Generation(
        share=share,
        weights=weights,
        working=working,
        cache=max(0.0, share - weights - working),
        token_bytes=2 * shape.layers / rollout.pipeline * kv_heads * shape.head_dim * size,
        longest=longest,
        replicas=max(1, rollout.world // gpus),
        limit=rollout.sequences,
    )
