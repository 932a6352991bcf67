"""Draw each token's noise from the rollout and the batch it is in, so that no division into parts changes it."""

from __future__ import annotations

import torch

from verl_s2d.objectives.token_weights import rollout_of_token

_BITS = 32
_FEW = (1 << _BITS) - 1


def rollout_seeds(ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Hash the ids of each rollout, in their order; (rollouts,) int64 below 2^32.

    Args:
        ids: (tokens,) integers, packed rollouts.
        cu_seqlens: (rollouts + 1,) integers, cumulative lengths of the rollouts; later ids are padding.
    """
    rollout, place = _places(cu_seqlens, len(ids))
    seeds = torch.zeros(len(cu_seqlens), dtype=torch.long, device=ids.device)
    return _mixed(seeds.index_add_(0, rollout, _mixed(ids.long() + _mixed(place))))[:-1]


def token_noise(seeds: torch.Tensor, cu_seqlens: torch.Tensor, tokens: int, *, batch: int = 0) -> torch.Tensor:
    """Draw uniform numbers in (0, 1) by hashing batch, rollout and position; (tokens,) float64.

    Equal rollouts of a batch get equal numbers.

    Args:
        seeds: (rollouts,) int64, of `rollout_seeds`.
        cu_seqlens: (rollouts + 1,) integers; rows may be padded to one length, which moves no number within its row.
        tokens: number of tokens, padding included.
        batch: seed of the batch, for instance the sum of all its rollouts' seeds.
    """
    rollout, place = _places(cu_seqlens, tokens)
    mine = torch.cat((seeds, seeds.new_zeros(1)))[rollout]
    bits = _mixed(_mixed(mine + _mixed(torch.full_like(mine, batch & _FEW))) + _mixed(place))
    return (bits.double() + 0.5) / (1 << _BITS)


def _places(cu_seqlens: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's rollout and its position in that; both (tokens,) int64."""
    rollout = rollout_of_token(cu_seqlens, tokens)
    return rollout, torch.arange(tokens, device=rollout.device) - cu_seqlens.to(rollout)[rollout]


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Scramble the lower 32 bits, one to one: multiply and shift twice. Factors are small enough for int64."""
    values = values & _FEW
    for _ in range(2):
        values = ((values >> 16) ^ values) * 0x45D9F3B & _FEW
    return (values >> 16) ^ values
