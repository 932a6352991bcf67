"""Weights of tokens and of problems, made of what a first pass tells, for the loss of the next.

TIP (arXiv 2604.14084), which tokens to keep. With H the student's entropy and D = KL(p_S || p_T), over a batch:

    h = minmax(min(H / log V, its 98th percentile)),   d = minmax(D),   s = 1 - (1 - h)(1 - d)

and of each rollout of m tokens the floor(keep m) with the highest s: where the student is unsure, or sure and wrong.
minmax(x) = (x - min x) / (max x - min x), so that the division by log V cancels and is left out.

PACED (arXiv 2603.11178), which problems to learn from, p being the student's pass rate:

    w = p^a (1 - p)^b,   over its mean
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from verl_s2d.objectives.gemm import wide

_PERCENTILE = 98


class BatchRange(NamedTuple):
    """What min-max needs to know of a batch: scalars; entropy_high is the percentile at which entropies are clipped."""

    entropy_low: torch.Tensor
    entropy_high: torch.Tensor
    divergence_low: torch.Tensor
    divergence_high: torch.Tensor


def batch_range(
    student_entropy: torch.Tensor, divergence: torch.Tensor, mask: torch.Tensor | None = None
) -> BatchRange:
    """Ranges of both over the tokens of the mask that are finite; zeros when there is none.

    The 98th percentile is the smallest entropy that at least 98 % of the tokens do not exceed: one of the batch's own.

    Args:
        student_entropy, divergence: (tokens,), any float dtype. To give several data-parallel ranks the range of their
            common batch, gather these first.
        mask: (tokens,), nonzero on tokens that count; all when None.

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(student_entropy, divergence, mask)
    wanted = torch.ones_like(divergence, dtype=torch.bool) if mask is None else mask.bool()
    known = wanted & student_entropy.isfinite() & divergence.isfinite()
    entropies, divergences = (values.detach()[known].to(wide(values.dtype)) for values in (student_entropy, divergence))
    if not len(entropies):
        return BatchRange(*(divergences.new_zeros(()) for _ in BatchRange._fields))
    clip = entropies.kthvalue(-(-_PERCENTILE * len(entropies) // 100)).values
    return BatchRange(entropies.min(), clip, *divergences.aminmax())


def soft_or_score(
    student_entropy: torch.Tensor, divergence: torch.Tensor, extent: BatchRange | None = None
) -> torch.Tensor:
    """s = 1 - (1 - h)(1 - d), the formula above; (tokens,) between 0 and 1, float32 or float64, never NaN.

    Where a whole batch is constant its h, or d, is 0. What is not finite counts as 1: a broken token is kept, for the
    guards on the loss to see, instead of being hidden by its own selection.

    Args:
        student_entropy, divergence: (tokens,), any float dtype.
        extent: the batch's; these tokens' own when None.

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(student_entropy, divergence, None)
    extent = extent or batch_range(student_entropy, divergence)
    h = _minmax(student_entropy, extent.entropy_low, extent.entropy_high)
    d = _minmax(divergence, extent.divergence_low, extent.divergence_high)
    return 1 - (1 - h) * (1 - d)


def soft_or_weights(
    student_entropy: torch.Tensor,
    divergence: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    keep: float = 0.5,
    mask: torch.Tensor | None = None,
    extent: BatchRange | None = None,
) -> torch.Tensor:
    """TIP's selection: 1 on the kept tokens of each rollout, 0 elsewhere; the loss is the mean over kept tokens.

    That is sum(weights * divergence) / sum(weights), both sums over the whole batch, all micro-batches and ranks; the
    second may be 0. As the mask of `divergence` the weights keep the others out of every product.

    Args:
        student_entropy, divergence: (tokens,), any float dtype, rollouts packed one behind the other. TIP's divergence
            is the reverse KL.
        cu_seqlens: (rollouts + 1,) integers, where rollouts begin and the last one ends; tokens behind it are padding.
        keep: share of a rollout's tokens kept, above 0 and at most 1; TIP's default 0.5, its aggressive setting 0.2.
        mask: (tokens,), nonzero on tokens that can be selected, responses say; all when None. The m of a rollout counts
            these alone. The others are never selected, nor looked at.
        extent: range of the batch when these tokens are only a part of it; their own when None.

    Returns:
        (tokens,) float32, detached. A rollout of fewer than 1 / keep tokens keeps none, as floor(keep m) says. Of
        equal scores the earlier token is kept.

    Raises:
        ValueError: shapes differ, keep is out of range, or on a CPU cu_seqlens falls or does not start at 0.
    """
    _check_shapes(student_entropy, divergence, mask)
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep} is not above 0 and at most 1")
    rollouts, rollout = len(cu_seqlens) - 1, rollout_of_token(cu_seqlens, len(divergence))
    wanted = rollout < rollouts
    if mask is not None:
        wanted &= mask.bool()
    extent = extent or batch_range(student_entropy, divergence, wanted)
    # Scores are not negative: what cannot be selected comes last in its rollout.
    score = torch.where(wanted, soft_or_score(student_entropy, divergence, extent), -1.0)
    order = score.argsort(descending=True, stable=True)
    order = order[rollout[order].argsort(stable=True)]
    sizes = torch.zeros(rollouts + 1, dtype=torch.long, device=wanted.device).index_add_(0, rollout, wanted.long())
    quota = kept_tokens(sizes, keep)
    # After both sorts the rollouts lie where they lay, each with its best tokens first.
    begins = cu_seqlens.to(order)
    place = torch.arange(len(order), device=order.device) - begins[rollout]
    weights = torch.zeros(len(order), device=order.device)
    weights[order] = (place < quota[rollout]).float()
    return weights


def kept_tokens(lengths: torch.Tensor, keep: float) -> torch.Tensor:
    """floor(keep m) of rollouts of m tokens, int64."""
    # 0.29 * 100 is 28.999999999999996, and its floor is to be 29.
    return (keep * lengths.double() + 1e-9).floor().long()


def paced_problem_weights(pass_rates: torch.Tensor, *, a: float = 1.0, b: float = 1.0) -> torch.Tensor:
    """PACED: w = p^a (1 - p)^b over its mean; (problems,) float32.

    With a = b = 1 problems that are always or never solved get 0 and those solved half the time get the most.

    Args:
        pass_rates: (problems,) between 0 and 1: the share of a problem's rollouts that the verifier accepted, 8 in the
            paper. These are labels read: they belong in the ledger.
        a, b: how fast the weight falls toward problems never solved and always solved; 0 leaves that side alone.

    Returns:
        Weights of mean 1 over the given problems; all 0 when none is in between.

    Raises:
        ValueError: a or b is negative, or on a CPU a rate is not between 0 and 1.
    """
    if min(a, b) < 0:
        raise ValueError(f"a {a} and b {b} must not be negative")
    rates = pass_rates.detach().double()
    if rates.device.type == "cpu" and not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"pass rates {rates.tolist()} are not between 0 and 1")
    weights = rates**a * (1 - rates) ** b
    mean = weights.sum() / max(1, len(weights))
    return (weights / torch.where(mean > 0, mean, 1.0)).float()


def rollout_of_token(cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """(tokens,) int64: in which rollout each packed token lies; the number of rollouts for those behind the last.

    Args:
        cu_seqlens: (rollouts + 1,) integers, where rollouts begin and the last one ends. Rollouts may be empty.

    Raises:
        ValueError: on a CPU, cu_seqlens falls, does not start at 0 or ends behind the tokens.
    """
    if cu_seqlens.device.type == "cpu":
        bounds = cu_seqlens.tolist()
        if not bounds or bounds[0] != 0 or bounds != sorted(bounds) or bounds[-1] > tokens:
            raise ValueError(f"cu_seqlens {bounds} do not rise from 0 to at most {tokens} tokens")
    ends = cu_seqlens[1:].contiguous()
    return torch.searchsorted(ends, torch.arange(tokens, dtype=ends.dtype, device=ends.device), right=True)


def expand_to_tokens(rollout_weights: torch.Tensor, cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """Each rollout's weight on its tokens, 0 on the padding behind the last; (rollouts,) -> (tokens,).

    PACED: expand_to_tokens(paced_problem_weights(rates)[problem_of_rollout], cu_seqlens, tokens).

    Raises:
        ValueError: a number of weights that is not that of rollouts, or cu_seqlens as in `rollout_of_token`.
    """
    if rollout_weights.shape != (len(cu_seqlens) - 1,):
        raise ValueError(f"{tuple(rollout_weights.shape)} weights for {len(cu_seqlens) - 1} rollouts")
    padded = torch.cat((rollout_weights, rollout_weights.new_zeros(1)))
    return padded[rollout_of_token(cu_seqlens, tokens).to(padded.device)]


def _minmax(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """(values - low) / (high - low) clipped to [0, 1]; 0 where low is high, 1 where a value is not finite."""
    values = values.detach().to(wide(values.dtype))
    spread = high - low
    scaled = ((values - low) / torch.where(spread > 0, spread, math.inf)).clamp(0, 1)
    return torch.where(values.isfinite(), scaled, 1.0)


def _check_shapes(student_entropy: torch.Tensor, divergence: torch.Tensor, mask: torch.Tensor | None) -> None:
    for name, given in (("student_entropy", student_entropy), ("mask", mask)):
        if given is not None and (given.dim() != 1 or given.shape != divergence.shape):
            raise ValueError(f"{name} of shape {tuple(given.shape)}, divergence of shape {tuple(divergence.shape)}")
