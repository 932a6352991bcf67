"""Weigh tokens and problems in the loss, from measurements of an earlier pass.

TIP (arXiv 2604.14084) selects tokens. With H the student's entropy and D a divergence from the teacher, over a batch:

    h = minmax(min(H / log V, its 98th percentile)),   d = minmax(D)

minmax(x) = (x - min x) / (max x - min x), so the division by log V cancels and is left out. Of each rollout of m tokens
a selector keeps the floor(keep m) with the highest score:

    tip             1 - (1 - h)(1 - d)   D = KL(p_S || p_T): the student is unsure, or sure and wrong
    q3              D (1 - h)            D = KL(p_T || p_S): sure and wrong (the paper's third quadrant)
    divergence      D                    D = KL(p_S || p_T), a control of the paper
    bottom_entropy  1 - h                a control of the paper
    entropy         h / (h - log u)      u uniform in (0, 1)

The last samples without replacement with probabilities in proportion to h: -log(u) / h is exponential with rate h, the
smallest come first, and log h + Gumbel noise would rank alike.

PACED (arXiv 2603.11178) weighs problems by the student's pass rate p:

    w = p^a (1 - p)^b,   divided by its mean
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from verl_s2d.objectives.gemm import wide

SELECTORS = ("tip", "entropy", "q3", "divergence", "bottom_entropy")
_ENTROPY_CLIP = 0.98


class BatchRange(NamedTuple):
    """Scalars of a batch, for min-max scaling; values above `*_high` count as that.

    The medians divide tokens into TIP's quadrants.
    """

    entropy_low: torch.Tensor
    entropy_high: torch.Tensor
    entropy_median: torch.Tensor
    divergence_low: torch.Tensor
    divergence_high: torch.Tensor
    divergence_median: torch.Tensor


def batch_range(
    student_entropy: torch.Tensor,
    divergence: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    clip_divergence: float | None = None,
) -> BatchRange:
    """Compute the ranges of entropy and divergence over the masked-in, finite tokens; zeros without any.

    The quantile q is the smallest value in the batch that at least the share q of the tokens does not exceed; that of
    0.98 is the upper end of the entropies, as in TIP.

    Args:
        student_entropy, divergence: (tokens,), any float dtype. For the range of a batch on several data-parallel
            ranks, gather these first.
        mask: (tokens,), nonzero on tokens that count; all when None.
        clip_divergence: quantile of the divergences that is their upper end; the maximum when None, as TIP has it. A
            single outlier then takes all others' d to zero.

    Raises:
        ValueError: shapes differ, or clip_divergence is out of range.
    """
    _check_shapes(divergence, student_entropy=student_entropy, mask=mask)
    if clip_divergence is not None and not 0 < clip_divergence <= 1:
        raise ValueError(f"clip_divergence {clip_divergence} is not above 0 and at most 1")
    wanted = torch.ones_like(divergence, dtype=torch.bool) if mask is None else mask.bool()
    known = wanted & student_entropy.isfinite() & divergence.isfinite()
    entropies, divergences = (values.detach()[known].to(wide(values.dtype)) for values in (student_entropy, divergence))
    if not len(entropies):
        return BatchRange(*(divergences.new_zeros(()) for _ in BatchRange._fields))
    ends = ((entropies, _ENTROPY_CLIP), (divergences, 1.0 if clip_divergence is None else clip_divergence))
    return BatchRange(*(number for x, high in ends for number in (x.min(), _quantile(x, high), _quantile(x, 0.5))))


def soft_or_score(
    student_entropy: torch.Tensor, divergence: torch.Tensor, extent: BatchRange | None = None
) -> torch.Tensor:
    """Compute TIP's score s = 1 - (1 - h)(1 - d); (tokens,) in [0, 1], float32 or float64, never NaN.

    h, or d, is 0 when it is constant over the batch. Values that are not finite score 1: broken tokens are kept, so
    that the checks on the loss see them.

    Args:
        student_entropy, divergence: (tokens,), any float dtype.
        extent: ranges of the batch; of these tokens when None.

    Raises:
        ValueError: shapes differ.
    """
    _check_shapes(divergence, student_entropy=student_entropy)
    extent = extent or batch_range(student_entropy, divergence)
    h = _minmax(student_entropy, extent.entropy_low, extent.entropy_high)
    d = _minmax(divergence, extent.divergence_low, extent.divergence_high)
    return 1 - (1 - h) * (1 - d)


def selection_score(
    student_entropy: torch.Tensor,
    divergence: torch.Tensor,
    extent: BatchRange | None = None,
    *,
    by: str = "tip",
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute a selector's score; (tokens,), at least 0, infinite for values that are not finite.

    Args: those of `select_tokens`.

    Raises:
        ValueError: shapes differ, `by` is unknown, or `noise` is missing.
    """
    _check_shapes(divergence, student_entropy=student_entropy, noise=noise)
    extent = extent or batch_range(student_entropy, divergence)
    value = divergence.detach().to(wide(divergence.dtype))
    h = _minmax(student_entropy, extent.entropy_low, extent.entropy_high)
    if by == "tip":
        score = soft_or_score(student_entropy, divergence, extent)
    elif by == "q3":
        score = torch.minimum(value, extent.divergence_high) * (1 - h)
    elif by == "divergence":
        score = value
    elif by == "bottom_entropy":
        score = 1 - h
    elif by == "entropy":
        if noise is None:
            raise ValueError("selection by entropy samples: it needs noise")
        score = h / (h - noise.log())
    else:
        raise ValueError(f"selector {by!r} is none of {SELECTORS}")
    return torch.where(student_entropy.isfinite() & value.isfinite(), score, math.inf)


def third_quadrant(student_entropy: torch.Tensor, divergence: torch.Tensor, extent: BatchRange) -> torch.Tensor:
    """Mark tokens of TIP's Q3, sure and wrong: entropy below, divergence above the batch's median; (tokens,) bool."""
    return (student_entropy < extent.entropy_median) & (divergence > extent.divergence_median)


def select_tokens(
    student_entropy: torch.Tensor,
    divergence: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    by: str = "tip",
    keep: float = 0.5,
    mask: torch.Tensor | None = None,
    extent: BatchRange | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select tokens as TIP does: 1 on the kept tokens of each rollout, 0 elsewhere.

    TIP's loss is the mean over kept tokens, sum(weights * divergence) / sum(weights), with both sums over all
    micro-batches and ranks of the batch; sum(weights) may be 0. As the mask of `divergence` the weights keep the other
    tokens out of every product.

    Args:
        student_entropy, divergence: (tokens,), any float dtype, packed rollouts.
        cu_seqlens: (rollouts + 1,) integers, cumulative lengths of the rollouts; tokens after the last are padding.
        by: one of SELECTORS.
        keep: fraction of a rollout's tokens to keep, in (0, 1]; TIP's default is 0.5, its aggressive setting 0.2.
        mask: (tokens,), nonzero on the tokens to select from, such as responses; all when None. The m of a rollout
            counts only these. The values of other tokens are ignored.
        extent: ranges of the batch, when these tokens are only a part of it; of these tokens when None.
        noise: (tokens,) uniform in (0, 1), for selection by entropy (objectives.token_noise).

    Returns:
        (tokens,) float32, detached. A rollout of fewer than 1 / keep tokens keeps none, by floor(keep m). Of equal
        scores the earlier token is kept.

    Raises:
        ValueError: shapes differ, keep or `by` is out of range, noise is missing, or (checked on a CPU) cu_seqlens
            decreases or does not start at 0.
    """
    _check_shapes(divergence, student_entropy=student_entropy, mask=mask)
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep} is not above 0 and at most 1")
    rollouts, rollout = len(cu_seqlens) - 1, rollout_of_token(cu_seqlens, len(divergence))
    wanted = rollout < rollouts
    if mask is not None:
        wanted &= mask.bool()
    extent = extent or batch_range(student_entropy, divergence, wanted)
    score = selection_score(student_entropy, divergence, extent, by=by, noise=noise)
    # Masked-out tokens come last in their rollout.
    order = torch.where(wanted, score, -math.inf).argsort(descending=True, stable=True)
    order = order[rollout[order].argsort(stable=True)]
    sizes = torch.zeros(rollouts + 1, dtype=torch.long, device=wanted.device).index_add_(0, rollout, wanted.long())
    quota = kept_tokens(sizes, keep)
    # After both sorts each rollout has its old range of positions, with its best tokens first.
    begins = cu_seqlens.to(order)
    place = torch.arange(len(order), device=order.device) - begins[rollout]
    weights = torch.zeros(len(order), device=order.device)
    weights[order] = (place < quota[rollout]).float()
    return weights


def kept_tokens(lengths: torch.Tensor, keep: float) -> torch.Tensor:
    """Compute floor(keep m) for rollouts of m tokens; int64."""
    # 0.29 * 100 is 28.999999999999996 in floating point; the result has to be 29.
    return (keep * lengths.double() + 1e-9).floor().long()


def paced_problem_weights(pass_rates: torch.Tensor, *, a: float = 1.0, b: float = 1.0) -> torch.Tensor:
    """Compute PACED's weights w = p^a (1 - p)^b, divided by their mean; (problems,) float32.

    With a = b = 1, problems solved always or never get 0, and problems solved half of the time get the most.

    Args:
        pass_rates: (problems,) in [0, 1], the fraction of a problem's rollouts (8 in the paper) that the verifier
            accepted. Computing them reads labels, which belong in the ledger.
        a, b: exponents; larger ones lower the weight of problems that are rarely (a) or mostly (b) solved.

    Returns:
        Weights of mean 1 over the given problems; all 0 when every rate is 0 or 1.

    Raises:
        ValueError: a or b is negative, or (checked on a CPU) a rate is not between 0 and 1.
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
    """Return the rollout index of each packed token, (tokens,) int64; padding gets the number of rollouts.

    Args:
        cu_seqlens: (rollouts + 1,) integers, cumulative lengths of the rollouts, which may be empty.

    Raises:
        ValueError: (checked on a CPU) cu_seqlens decreases, does not start at 0 or exceeds the number of tokens.
    """
    if cu_seqlens.device.type == "cpu":
        bounds = cu_seqlens.tolist()
        if not bounds or bounds[0] != 0 or bounds != sorted(bounds) or bounds[-1] > tokens:
            raise ValueError(f"cu_seqlens {bounds} do not rise from 0 to at most {tokens} tokens")
    ends = cu_seqlens[1:].contiguous()
    return torch.searchsorted(ends, torch.arange(tokens, dtype=ends.dtype, device=ends.device), right=True)


def expand_to_tokens(rollout_weights: torch.Tensor, cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """Repeat each rollout's weight on its tokens, with 0 on padding; (rollouts,) -> (tokens,).

    PACED: expand_to_tokens(paced_problem_weights(rates)[problem_of_rollout], cu_seqlens, tokens).

    Raises:
        ValueError: weights and rollouts differ in number, or cu_seqlens as in `rollout_of_token`.
    """
    if rollout_weights.shape != (len(cu_seqlens) - 1,):
        raise ValueError(f"{tuple(rollout_weights.shape)} weights for {len(cu_seqlens) - 1} rollouts")
    padded = torch.cat((rollout_weights, rollout_weights.new_zeros(1)))
    return padded[rollout_of_token(cu_seqlens, tokens).to(padded.device)]


def _quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return the smallest value that at least this share of the values does not exceed."""
    # 0.07 * 100 is 7.000000000000001 in floating point; the result has to be the seventh.
    return values.kthvalue(max(1, math.ceil(share * len(values) - 1e-9))).values


def _minmax(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Compute (values - low) / (high - low) clipped to [0, 1]; 0 if low equals high, 1 for values not finite."""
    values = values.detach().to(wide(values.dtype))
    spread = high - low
    scaled = ((values - low) / torch.where(spread > 0, spread, math.inf)).clamp(0, 1)
    return torch.where(values.isfinite(), scaled, 1.0)


def _check_shapes(divergence: torch.Tensor, **others: torch.Tensor | None) -> None:
    for name, given in others.items():
        if given is not None and (given.dim() != 1 or given.shape != divergence.shape):
            raise ValueError(f"{name} of shape {tuple(given.shape)}, divergence of shape {tuple(divergence.shape)}")
