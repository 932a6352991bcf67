"""Divide responses into parts by position, to see where along a response a per-token value changes."""

from __future__ import annotations

import torch

QUARTERS = 4


def quarters(is_response: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Number the quarter of its own response in which each token is, from 0 to 3.

    Token i of a response of m tokens is in quarter floor(4 i / m), so that quarters differ by at most one token.

    Args:
        is_response: (tokens,) packed sequences, nonzero on response tokens.
        offsets: (sequences + 1,) first token of each sequence, and the number of tokens.

    Returns:
        (tokens,) int64; -1 outside of responses.
    """
    chosen = is_response.bool()
    lengths = offsets.diff()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=chosen.device), lengths.to(chosen.device))
    counts = torch.zeros(len(lengths), dtype=torch.int64, device=chosen.device)
    counts.index_add_(0, sequence, chosen.long())
    before = counts.cumsum(0) - counts
    index = chosen.long().cumsum(0) - 1 - before[sequence]
    return torch.where(chosen, QUARTERS * index // counts[sequence].clamp(min=1), -1)
