"""Keep the k most likely tokens beside each sampled one: what a teacher that sampled need not be asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

IDS, LOG_PROBS = "top_ids", "top_log_probs"
"""Columns of a file of samples: for each response token a list of k."""


class LikelyTokens(NamedTuple):
    """The k most likely tokens at each sampled position, the likeliest first.

    Attributes:
        ids: (tokens, k) int32.
        log_probs: (tokens, k) float32, of the model's own logits: at temperature 1, before top_p and top_k, normalised
            over all tokens that may be sampled.
    """

    ids: np.ndarray
    log_probs: np.ndarray


def of_vllm(logprobs: Any, k: int) -> LikelyTokens:
    """Read a completion's FlatLogprobs, which has the sampled token before the k most likely ones at each position."""
    shape = (len(logprobs), k + 1)
    ids = np.asarray(logprobs.token_ids, np.int32).reshape(shape)
    log_probs = np.asarray(logprobs.logprobs, np.float32).reshape(shape)
    return LikelyTokens(ids[:, 1:], log_probs[:, 1:])


def columns(samples: Sequence[LikelyTokens]) -> dict[str, pa.Array]:
    """Make the two columns of these samples, of which there is at least one."""
    offsets = pa.array(np.cumsum([0, *(len(sample.ids) for sample in samples)]), pa.int32())
    k = samples[0].ids.shape[1]

    def column(arrays: list[np.ndarray]) -> pa.Array:
        flat = pa.array(np.concatenate(arrays).ravel())
        return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, k))

    return {IDS: column([s.ids for s in samples]), LOG_PROBS: column([s.log_probs for s in samples])}


def fields(k: int) -> list[tuple[str, pa.DataType]]:
    """Return the schema of the two columns; empty for k = 0."""
    kinds = ((IDS, pa.int32()), (LOG_PROBS, pa.float32()))
    return [(name, pa.list_(pa.list_(kind, k))) for name, kind in kinds] if k else []
