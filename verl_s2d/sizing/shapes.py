"""Describe the shape of decoder-only transformers and count their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FAMILIES = {
    # model_type -> (a norm on each head's queries and keys, biases of queries, keys and values)
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (False, True),
    "qwen3": (True, False),
}


class ShapeUnknown(Exception):
    """The shape of a model is unknown; the message gives the reason."""


@dataclass(frozen=True)
class ModelShape:
    """Shape of a dense decoder with gated feed-forward layers and grouped queries: Llama, Mistral, Qwen2, Qwen3.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layers.
        heads, kv_heads: number of query heads; of key and value heads.
        head_dim: width of one head.
        vocabulary: rows of the embedding, padding included.
        tied: the output embedding is the input embedding.
        qk_norm: queries and keys are normalised per head.
        qkv_bias: projections of queries, keys and values have biases.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qk_norm: bool = False
    qkv_bias: bool = False

    @property
    def queries(self) -> int:
        """Return the width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Return the width of all keys of a token, which is also that of all values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """List the linear layers of one block: name -> (in, out)."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def block_parameters(self) -> int:
        """Count one block's parameters: matrices, two norms, and the family's head norms and biases."""
        matrices = sum(a * b for a, b in self.matrices.values())
        biases = (self.queries + 2 * self.keys) * self.qkv_bias
        return matrices + biases + 2 * self.hidden + 2 * self.head_dim * self.qk_norm

    @property
    def embedding_parameters(self) -> int:
        """Count the input embedding's parameters; an untied output embedding has as many."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Count all parameters, a tied embedding once."""
        return self.layers * self.block_parameters + self.embedding_parameters * (2 - self.tied) + self.hidden


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Read the shape from a config.json's content.

    Raises:
        ShapeUnknown: the family is not supported, or a number is missing.
    """
    config = config.get("text_config") or config
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ShapeUnknown(f"parameters are counted for {', '.join(_FAMILIES)}, not for model_type {family!r}")
    qk_norm, biased = _FAMILIES[family]

    def number(name: str, default: int | None = None) -> int:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ShapeUnknown(f"its config.json gives no {name}")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    return ModelShape(
        hidden=hidden,
        intermediate=number("intermediate_size"),
        layers=number("num_hidden_layers"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads),
        vocabulary=number("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qk_norm,
        qkv_bias=biased,
    )


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = False) -> ModelShape:
    return ModelShape(hidden, intermediate, layers, heads, 8, 128, 151_936, tied, qk_norm=True)


def _llama3(hidden: int, intermediate: int, layers: int, heads: int) -> ModelShape:
    return ModelShape(hidden, intermediate, layers, heads, 8, 128, 128_256, tied=False)


PUBLISHED = {
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(4096, 14336, 32, 32),
    "meta-llama/Llama-3.1-70B-Instruct": _llama3(8192, 28672, 80, 64),
    "meta-llama/Llama-3.3-70B-Instruct": _llama3(8192, 28672, 80, 64),
}
"""Shapes of the recipes' models, from their published config.json: hub id -> shape."""
