"""Compute on-policy distillation's advantage: a policy gradient with a dense per-token reward.

Minimising KL(pi_S || pi_T) on the student's own samples y follows E_y[ sum_t -A_t grad log pi_S(y_t|s_t) ] with

    A_t = beta (log pi_T(y_t|s_t) - log pi_S(y_t|s_t)),   held fixed (arXiv 2605.12483, implicit reward of OPD).

Only the *sampled* token's log-ratio can serve as an advantage. A full-vocabulary divergence does not depend on the
sampled token, so as an advantage it has zero expected gradient. Back-propagated directly, k1 has zero expected gradient
and k3 that of the forward KL.
"""

from __future__ import annotations

import math

import torch


def sampled_token_advantage(
    teacher_log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    beta: float = 1.0,
    whiten: bool = False,
    centre: bool = False,
) -> torch.Tensor:
    """Compute A_t = beta (log pi_T(y_t|s_t) - log pi_old(y_t|s_t)) on response tokens, zero elsewhere.

    Args:
        teacher_log_probs: (batch, response) log-probs of the sampled tokens under the teacher, any float dtype.
        old_log_probs: (batch, response) log-probs of the same tokens under the policy before the update.
        response_mask: (batch, response), nonzero on sampled tokens; log-probs at other positions are ignored.
        beta: scale.
        whiten: zero mean and unit variance over the batch's response tokens; no effect on fewer than two.
        centre: zero mean alone, likewise (ShiftMOPD, arXiv 2610.10460).

    Returns:
        (batch, response) float32, detached.
    """
    mask = response_mask.bool()
    difference = teacher_log_probs.detach().float() - old_log_probs.detach().float()
    advantages = torch.where(mask, beta * difference, 0.0)
    if (whiten or centre) and int(mask.sum()) > 1:
        on_tokens = advantages[mask]
        if not whiten:
            return torch.where(mask, advantages - on_tokens.mean(), 0.0)
        advantages = torch.where(mask, (advantages - on_tokens.mean()) / (on_tokens.std() + 1e-8), 0.0)
    return advantages


def position_weights(
    teacher_log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    max_weight: float = 1.5,
) -> torch.Tensor:
    """Compute IW-OPD's factors of the advantages (arXiv 2606.22600), from max_weight at a response's start down to 1.

    g_t = 1 + (max_weight - 1) (1 - sum_{k<t} |d_k| / sum_k |d_k|),   d = log pi_T(y|s) - log pi_old(y|s)

    over the response's tokens. A response on which the two policies agree has weights of 1; its advantages are 0.

    Args: as above; max_weight is at least 1.

    Returns:
        (batch, response) float32, detached, zero outside the mask.
    """
    mask = response_mask.bool()
    difference = (teacher_log_probs.detach().double() - old_log_probs.detach().double()).abs()
    sizes = torch.where(mask, difference, 0.0)
    total = sizes.sum(-1, keepdim=True)
    before = (sizes.cumsum(-1) - sizes) / torch.where(total > 0, total, 1.0)
    ahead = torch.where(total > 0, 1 - before, 0.0)
    return torch.where(mask, 1 + (max_weight - 1) * ahead, 0.0).float()


def batch_seed(log_probs: torch.Tensor, response_mask: torch.Tensor) -> int:
    """Derive a seed from the log-probs of a batch's response tokens: the same batch gets the same one.

    Args:
        log_probs, response_mask: (batch, response).
    """
    return int(log_probs.detach()[response_mask.bool()].double().sum().abs().frexp().mantissa * 2**53)


def discouraged_tokens(
    log_probs: torch.Tensor, entropies: torch.Tensor, response_mask: torch.Tensor, *, share: float
) -> torch.Tensor:
    """Compute OPSA's advantages (arXiv 2608.31046), from -1/2 down to -1 on the least likely sampled tokens.

    A_t = -1/2 - (H_t - H_min) / (2 (H_max - H_min)) on floor(share x tokens) of them, 0 elsewhere; H_min and H_max are
    taken over these tokens. Equal entropies give -1/2, equal log-probs are taken in the batch's order.

    Args:
        log_probs: (batch, response) log pi_old of the sampled tokens.
        entropies: (batch, response) entropy of pi_old at them, in nats.
        response_mask: (batch, response), nonzero on sampled tokens; other positions are ignored.
        share: in (0, 1].

    Returns:
        (batch, response) float32, detached.
    """
    mask = response_mask.bool()
    lowest = log_probs.detach().float()[mask].argsort(stable=True)[: math.floor(share * int(mask.sum()))]
    on_tokens = log_probs.new_zeros(int(mask.sum()), dtype=torch.float32)
    if len(lowest):
        chosen = entropies.detach().float()[mask][lowest]
        extent = chosen.max() - chosen.min()
        on_tokens[lowest] = -0.5 - (chosen - chosen.min()) / (2 * torch.where(extent > 0, extent, 1.0))
    advantages = torch.zeros_like(mask, dtype=torch.float32)
    advantages[mask] = on_tokens
    return advantages


def raised_margin(
    advantages: torch.Tensor, mask: torch.Tensor, correct: torch.Tensor, groups: torch.Tensor, *, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raise the gap between a problem's correct and wrong rollouts to `margin` where it is smaller (arXiv 2605.03677).

        gap = mean_{i correct} a_i - mean_{i wrong} a_i,   a_i = mean_t A_it over the response tokens of rollout i
        A_it += s for correct, A_it -= s for wrong rollouts,   s = max(0, margin - gap) / 2

    A problem whose rollouts are all correct or all wrong keeps its advantages.

    Args:
        advantages: (batch, response).
        mask: (batch, response), nonzero on response tokens; rollouts without any are left out.
        correct: (batch,) bool.
        groups: (batch,) integers, equal for rollouts of the same problem.
        margin: above 0.

    Returns:
        Advantages, (batch, response) float32, detached, zero outside the mask; and s of each rollout, (batch,) float64.
    """
    counts = mask.bool().sum(-1)
    values = torch.where(mask.bool(), advantages.detach().double(), 0.0)
    means = values.sum(-1) / counts.clamp(min=1)
    group = groups.unique(return_inverse=True)[1]
    size = int(group.max()) + 1 if len(group) else 0
    sides = {}
    for side, chosen in (("correct", correct), ("wrong", ~correct)):
        members = (chosen & (counts > 0)).double()
        total = means.new_zeros(size).index_add_(0, group, members)
        sides[side] = total, means.new_zeros(size).index_add_(0, group, members * means) / total.clamp(min=1)
    both = (sides["correct"][0] > 0) & (sides["wrong"][0] > 0)
    gap = sides["correct"][1] - sides["wrong"][1]
    shift = torch.where(both, (margin - gap).clamp(min=0) / 2, 0.0)[group] * (counts > 0)
    signed = torch.where(correct, shift, -shift)
    return torch.where(mask.bool(), values + signed[:, None], 0.0).float(), shift


def balanced_rollouts(mask: torch.Tensor, correct: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Choose as many correct as wrong rollouts of a batch, at random; all of them where one sort is missing.

    Args:
        mask: (batch, response), nonzero on response tokens; rollouts without any are not counted.
        correct: (batch,) bool.

    Returns:
        (batch,) bool, the rollouts to keep.
    """
    counted = mask.bool().any(-1)
    right, wrong = (torch.nonzero(counted & chosen)[:, 0] for chosen in (correct, ~correct))
    few, many = sorted((right, wrong), key=len)
    keep = torch.ones_like(correct)
    if len(few):
        order = torch.randperm(len(many), generator=torch.Generator().manual_seed(seed))
        keep[many[order[len(few) :].to(many.device)]] = False
    return keep


def clip_advantages(advantages: torch.Tensor, response_mask: torch.Tensor, limit: float) -> tuple[torch.Tensor, float]:
    """Clip advantages to [-limit, limit] and return the fraction of response tokens clipped.

    A token that the teacher finds very unlikely has an advantage of -10 or less and outweighs hundreds of others.

    Args:
        advantages, response_mask: (batch, response).
        limit: largest magnitude, above 0.
    """
    mask = response_mask.bool()
    beyond = (advantages.abs() > limit) & mask
    return advantages.clamp(-limit, limit), (beyond.sum() / mask.sum().clamp(min=1)).item()


def mismatch_gate(
    old_log_probs: torch.Tensor, sampler_log_probs: torch.Tensor, response_mask: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, float]:
    """Compute factors of the advantages that gate the mismatch of two engines, and the fraction of tokens left out.

    w_t = pi_old(y_t|s_t) / mu(y_t|s_t) where that is in [low, high], else 0; held fixed (MiMo-V2-Flash, section 4.4).
    Both are the same weights in two engines: a ratio far from 1 is an error of one and says nothing about the policy.

    Args:
        old_log_probs: (batch, response) log pi_old of the sampled tokens, computed by the engine that trains.
        sampler_log_probs: (batch, response) log mu of them, as the engine that samples reported it.
        response_mask: (batch, response), nonzero on sampled tokens; log-probs at other positions are ignored.
        low, high: bounds of the ratio.

    Returns:
        ((batch, response) float32, detached, zero outside the mask; the fraction).
    """
    mask = response_mask.bool()
    ratio = torch.exp(old_log_probs.detach().double() - sampler_log_probs.detach().double())
    kept = (ratio >= low) & (ratio <= high) & mask
    share = ((mask & ~kept).sum() / mask.sum().clamp(min=1)).item()
    return torch.where(kept, ratio, 0.0).float(), share


def capped_extrapolation(
    teacher_log_probs: torch.Tensor, base_log_probs: torch.Tensor, extrapolation: float, tail_floor: float
) -> torch.Tensor:
    """Cap ExOPD's lambda for each sampled token, so that all other tokens keep a probability of tail_floor.

    With two outcomes, the sampled token y and the rest, the student comes to rest at

        logit p* = lambda logit p - (lambda - 1) logit b,   p = pi_T(y), b = pi_base(y),

    and 1 - p* >= tau holds up to lambda_max = (logit(1 - tau) - logit b) / (logit p - logit b). Returned is
    max(1, min(lambda, lambda_max)), and 1 where p < b: extrapolation would erode a token that the base gets right.
    Derived here, as the closed form of Extrapolation Cliff (arXiv 2605.08737) is not public.

    Args:
        teacher_log_probs, base_log_probs: (batch, response) log-probs of the sampled tokens, any float dtype.
        extrapolation: lambda, above 1.
        tail_floor: tau, in (0, 0.5).

    Returns:
        (batch, response) float32, at least 1.
    """
    teacher, base = (_logit(log_probs.detach().float()) for log_probs in (teacher_log_probs, base_log_probs))
    highest = math.log1p(-tail_floor) - math.log(tail_floor)
    bound = (highest - base) / (teacher - base)
    # Not a number only where both are certain, or the base rules the token out.
    capped = bound.nan_to_num(nan=1.0).clamp(1.0, max(extrapolation, 1.0))
    return torch.where(teacher < base, 1.0, capped)


def _logit(log_probs: torch.Tensor) -> torch.Tensor:
    """Compute log(p / (1 - p)) from log p."""
    return log_probs - torch.log(-torch.expm1(log_probs))
