"""Select the tokens to compare and the size of a chunk."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from verl_s2d.objectives import chunk_sizes
from verl_s2d.objectives.logits import GivenLogits, LinearLogits


def as_logits(logits: torch.Tensor | LinearLogits) -> GivenLogits | LinearLogits:
    return GivenLogits(logits) if isinstance(logits, torch.Tensor) else logits


def wanted_rows(mask: torch.Tensor | None, tokens: int, device: torch.device) -> torch.Tensor:
    """Return the indices of the tokens with a nonzero mask, or of all tokens when it is None; (rows,) int64.

    Raises:
        ValueError: the mask is not of shape (tokens,).
    """
    if mask is None:
        return torch.arange(tokens, device=device)
    if mask.shape != (tokens,):
        raise ValueError(f"mask of shape {tuple(mask.shape)} for {tokens} tokens")
    return mask.to(device).nonzero().squeeze(-1)


def shared_size(vocab_size: int | None, held: int) -> int:
    """Return the real size of a vocabulary whose logits have `held` columns; `held` when None.

    Raises:
        ValueError: vocab_size is not between 1 and `held`.
    """
    if vocab_size is None:
        return held
    if not 1 <= vocab_size <= held:
        raise ValueError(f"vocab_size {vocab_size} is not between 1 and the models' {held}")
    return vocab_size


def tokens_at_a_time(chunk_tokens: int | None, device: torch.device) -> int:
    """Return chunk_tokens, or the device's default from `chunk_sizes` when None.

    Raises:
        ValueError: chunk_tokens is not positive.
    """
    if chunk_tokens is None:
        return chunk_sizes.ON_CPU if device.type == "cpu" else chunk_sizes.ON_ACCELERATOR
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens {chunk_tokens} is not positive")
    return chunk_tokens


def parts(count: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover range(count)."""
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))
