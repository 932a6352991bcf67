"""What a forward pass leaves for the backward pass, in bytes on one GPU.

Counted tensor by tensor from transformers' decoder layer in `b`-byte compute with flash attention (scores are never
stored), per token; H, I, A, K are the widths of the residual stream, the feed-forward layer, all queries, all keys:

    each of the two norms   (4 + 2b) H      its fp32 input, the normalised input, its output
    queries and keys        b (A + K), or (4 + 2b) (A + K) with a norm on each head
    values, attention       b K + b A
    feed-forward            4 b I           gate, up, silu(gate), their product

Under tensor parallelism all but the norms is divided, and with sequence parallelism the norms too (Korthikanti et al.
2022, "Reducing Activation Recomputation in Large Transformer Models", whose counts are for another layer). With
checkpointing a layer leaves its input, b H, and its own activations exist only while it is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Engine


@dataclass(frozen=True)
class Activations:
    """Bytes: what a pass keeps in all layers, what a recomputed layer adds, what its backward works with beside it."""

    kept: float
    recomputed: float
    working: float


def activations(shape: ModelShape, engine: Engine, tokens: int, micro_batches: int = 1) -> Activations:
    """Of a training pass of `tokens` tokens on this GPU.

    Args:
        micro_batches: of a mini-batch; under pipeline parallelism the first stage has up to PP of them in flight.
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
    """Of a pass without gradients: a layer's input and output, its norm in fp32, and the feed-forward tensors."""
    width = engine.compute_bytes * shape.hidden / (engine.tensor if engine.sequence_parallel else 1)
    return tokens * (4 * width + 3 * engine.compute_bytes * shape.intermediate / engine.tensor)


def layer_bytes(shape: ModelShape, engine: Engine) -> float:
    """One layer's activations of one token, without checkpointing."""
    b = engine.compute_bytes
    norms = 2 * (4 + 2 * b) * shape.hidden
    heads = (4 + 2 * b if shape.qk_norm else b) * (shape.queries + shape.keys)
    divided = heads + b * (shape.keys + shape.queries) + 4 * b * shape.intermediate
    return norms / (engine.tensor if engine.sequence_parallel else 1) + divided / engine.tensor
