"""Estimate the activations that a forward pass stores for the backward pass, in bytes on one GPU.

Counted tensor by tensor for transformers' decoder layer, computing in b bytes per number with flash attention, which
stores no scores. Per token, with the widths H of the residual stream, I of the feed-forward layer, A of all queries and
K of all keys:

    each of the two norms   (4 + 2b) H      its fp32 input, the normalised input, its output
    queries and keys        b (A + K), or (4 + 2b) (A + K) with a norm on each head
    values, attention       b K + b A
    feed-forward            4 b I           gate, up, silu(gate), their product

Tensor parallelism shards everything except the norms, and sequence parallelism the norms as well (Korthikanti et al.
2022, "Reducing Activation Recomputation in Large Transformer Models", which counts another layer). With checkpointing a
layer stores only its input, b H; its other activations exist while it is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Engine


@dataclass(frozen=True)
class Activations:
    """Bytes of activations.

    Attributes:
        kept: stored in all layers by the forward pass.
        recomputed: recomputed at a time during the backward pass.
        working: temporaries of a layer's backward pass.
    """

    kept: float
    recomputed: float
    working: float


def activations(shape: ModelShape, engine: Engine, tokens: int, micro_batches: int = 1) -> Activations:
    """Estimate the activations of a training pass over `tokens` tokens on this GPU.

    Args:
        micro_batches: number per mini-batch; the first stage of a pipeline has up to PP of them in flight.
    """
    layers = shape.layers / engine.pipeline
    in_flight = min(engine.pipeline, micro_batches)
    whole = tokens * layer_bytes(shape, engine)
    width = engine.compute_bytes * shape.hidden / (engine.tensor if engine.sequence_parallel else 1)
    working = tokens * (2 * width + 2 * engine.compute_bytes * shape.intermediate / engine.tensor)
    if engine.checkpointing is None:
        return Activations(in_flight * layers * whole, 0, working)
    at_once = min(engine.checkpointing, layers)
    return Activations(in_flight * layers / at_once * tokens * width, at_once * whole, working)


def forward_working(shape: ModelShape, engine: Engine, tokens: int) -> float:
    """Estimate a pass without gradients: a layer's input, output, fp32 norm and feed-forward tensors; bytes."""
    width = engine.compute_bytes * shape.hidden / (engine.tensor if engine.sequence_parallel else 1)
    return tokens * (4 * width + 3 * engine.compute_bytes * shape.intermediate / engine.tensor)


def layer_bytes(shape: ModelShape, engine: Engine) -> float:
    """Compute the bytes of one layer's activations for one token, without checkpointing."""
    b = engine.compute_bytes
    norms = 2 * (4 + 2 * b) * shape.hidden
    heads = (4 + 2 * b if shape.qk_norm else b) * (shape.queries + shape.keys)
    divided = heads + b * (shape.keys + shape.queries) + 4 * b * shape.intermediate
    return norms / (engine.tensor if engine.sequence_parallel else 1) + divided / engine.tensor
