"""vLLM on one GPU: weights, KV cache, and how many sequences of full length fit."""

from __future__ import annotations

from dataclasses import dataclass

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Rollout

GRAPH_BYTES = 2 << 30
"""An assumption: what CUDA graphs, NCCL and the process itself take of vLLM's share."""


@dataclass(frozen=True)
class Generation:
    """Bytes on one GPU, and sequences of full length that one replica holds at a time.

    Attributes:
        share: gpu_memory_utilization of the GPU: vLLM takes all of it, for whatever the KV cache can use.
        weights: of this GPU's part of the model.
        working: a forward pass of max_num_batched_tokens, and the logits of max_num_seqs for the sampler.
        cache: what is left of the share for keys and values.
        token_bytes: 2 L K D b / TP (and / PP): keys and values of one token in every layer that is here. Heads of keys
            and values are copied where there are fewer of them than GPUs (vLLM, PagedAttention).
        replicas: how many engines there are.
        limit: sequences of any length that one engine works on at a time (max_num_seqs).
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
        """Sequences of `longest` tokens at a time, in one replica."""
        return max(0, int(self.cache // (self.token_bytes * self.longest)))


def generation(rollout: Rollout, shape: ModelShape, longest: int, gpu_bytes: float) -> Generation:
    """vLLM's memory, as its start-up measures it: weights and one pass first, the cache gets the rest.

    Weights are parameters / (TP PP) in the rollout's dtype. A pass holds, for each token, the residual stream twice
    and the widest pair of feed-forward activations; the sampler works on logits and probabilities in fp32.
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
