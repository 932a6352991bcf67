"""Compare two blocks of logits: divergences, their gradient, entropies and agreement. Elementwise work only.

With z the logits, p = softmax(z), S the student, T the teacher, and m = beta p_T + (1 - beta) p_S:

    forward_kl  KL(p_T || p_S)                               d/dz_S = p_S - p_T
    reverse_kl  KL(p_S || p_T)                               d/dz_S = p_S (log p_S - log p_T - KL(p_S || p_T))
    jsd         beta KL(p_T || m) + (1 - beta) KL(p_S || m)  d/dz_S = (1 - beta) p_S (log p_S - log m - KL(p_S || m))

and the gradients of two more results: of H(p_S), -p_S (log p_S + H); of log p_S(y), 1[v = y] - p_S.
Gradients of stages 2a and 2b in arXiv 2605.12483; the generalised JSD is that of GKD (arXiv 2306.13649, eq. 1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from verl_s2d.objectives.vocabulary import VocabularyShard, WholeVocabulary

OBJECTIVES = ("forward_kl", "reverse_kl", "jsd")


class Comparison(NamedTuple):
    """Rows of `values` are the fields of divergence.Divergence; the gradient of a row of logits is scale * student."""

    values: torch.Tensor
    scale: torch.Tensor


def compare_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor | None,
    objective: str,
    beta: float,
    vocabulary: WholeVocabulary | VocabularyShard,
    masked: bool,
) -> Comparison:
    """Compare two blocks of logits, (rows, ids here), float32 or float64. Overwrites the student's and possibly both.

    Args:
        student: overwritten with the gradient of each row's divergence with respect to it, up to `scale`.
        teacher: undefined afterwards.
        ids: (rows,) sampled ids relative to the first id on this rank, or None; the log-probability of an id that no
            rank holds is -inf.
        objective: one of OBJECTIVES; student_entropy or student_log_prob give the gradient of these.
        beta: of jsd.
        vocabulary: the ids on this rank.
        masked: logits may be -inf.

    Returns:
        values, (6, rows), and scale, (rows,).
    """
    # Subtracting the maximum first brings the likely ids near zero, where float32 is precise even for logits of 1e4.
    top = vocabulary.maximum(torch.stack((student.amax(-1), teacher.amax(-1)))).unsqueeze(-1)
    student.sub_(top[0])
    # Out of place for cache-sized CPU blocks (saves a write-back), in place for whole chunks (saves a copy). Under
    # torch.compile always out of place: fusion makes no copy.
    whole_chunk = (teacher.is_cuda or vocabulary.parallel) and not torch.compiler.is_compiling()
    teacher = teacher.sub_(top[1]) if whole_chunk else teacher - top[1]
    if masked:
        # 0 * log 0 is 0, which -inf would make NaN. Sums and differences of two floors are finite.
        floor = torch.finfo(student.dtype).min / 4
        student.clamp_(min=floor)
        teacher.clamp_(min=floor)
    # An id whose two logits are zero here is the top of both models. Computing its index costs more (on a CPU 6x with
    # argmax, 1.5x with max(dim)), and for tied ids the index would depend on their order and their rank.
    p_s = student + teacher
    agree = p_s.amax(-1) == 0
    p_s, p_t = torch.exp(student, out=p_s), teacher.exp()
    parts = [p_s.sum(-1), p_t.sum(-1), _dot(p_s, student), _dot(p_t, teacher), agree.to(student.dtype)]
    if ids is not None:
        sampled = _at(ids, student, teacher)
        parts += [_lowest(logit, floor) for logit in sampled[:2]] + sampled[2:] if masked else sampled
    if objective == "forward_kl":
        cross = _dot(p_t, student)
        parts.append(cross.masked_fill(_impossible(p_t, student, floor), -math.inf) if masked else cross)
    elif objective == "reverse_kl":
        infinite = _impossible(p_s, teacher, floor) if masked else None
        log_ratio = _dot(p_s, torch.sub(student, teacher, out=teacher))
        parts.append(log_ratio.masked_fill(infinite, math.inf) if masked else log_ratio)
    sums = vocabulary.total(torch.stack(parts))
    sum_s, sum_t, energy_s, energy_t = sums[0], sums[1], sums[2] / sums[0], sums[3] / sums[1]
    log_s, log_t = sum_s.log(), sum_t.log()
    scale = sum_s.reciprocal()
    if objective == "forward_kl":
        divergence = energy_t - sums[-1] / sum_t + log_s - log_t
        torch.addcmul(p_s, p_t, (-sum_s / sum_t).unsqueeze(-1), out=student)
    elif objective == "reverse_kl":
        mean = sums[-1] / sum_s
        divergence = mean - log_s + log_t
        torch.mul(p_s, teacher.sub_(mean.unsqueeze(-1)), out=student)
        if masked:
            # An infinite divergence has a gradient only for ids of probability zero.
            student.masked_fill_((mean == math.inf).unsqueeze(-1), math.nan).masked_fill_(p_s == 0, 0.0)
    elif objective == "jsd":
        mixture = torch.logaddexp(
            teacher - (log_t - math.log(beta)).unsqueeze(-1), student - (log_s - math.log1p(-beta)).unsqueeze(-1)
        )
        student.sub_(mixture).sub_(log_s.unsqueeze(-1))
        teacher.sub_(mixture).sub_(log_t.unsqueeze(-1))
        kl_s, kl_t = vocabulary.total(torch.stack((_dot(p_s, student) * scale, _dot(p_t, teacher) / sum_t)))
        divergence = beta * kl_t + (1 - beta) * kl_s
        student.sub_(kl_s.unsqueeze(-1)).mul_(p_s)
        scale = scale * (1 - beta)
    elif objective == "student_entropy":
        divergence = torch.zeros_like(log_s)
        student.sub_(energy_s.unsqueeze(-1)).mul_(p_s).neg_()
    else:
        divergence = torch.zeros_like(log_s)
        torch.neg(p_s, out=student)
        here, position = _position(ids, student)
        student.scatter_add_(1, position, (here * sum_s).unsqueeze(-1))
    if ids is None:
        sampled = [torch.full_like(log_s, math.nan)] * 2
    else:
        nobody = sums[7] == 0
        sampled = [(sums[5] - log_s).masked_fill(nobody, -math.inf), (sums[6] - log_t).masked_fill(nobody, -math.inf)]
    # Rounding can take a divergence below zero, and several ranks can hold tied top ids.
    values = (divergence.clamp(min=0), log_s - energy_s, log_t - energy_t, sums[4].clamp(max=1), *sampled)
    return Comparison(torch.stack(values), scale)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute row-wise dot products; (rows,).

    linalg.vecdot materialises the products; torch.dot, for a single row (large vocabularies), does not.
    """
    return torch.dot(a[0], b[0]).unsqueeze(0) if len(a) == 1 else torch.linalg.vecdot(a, b)


def _lowest(logits: torch.Tensor, floor: float) -> torch.Tensor:
    """Restore -inf in logits that were clamped to the floor."""
    return logits.masked_fill(logits <= floor, -math.inf)


def _impossible(probabilities: torch.Tensor, logits: torch.Tensor, floor: float) -> torch.Tensor:
    """Mark rows in which an id of positive probability is excluded by the other side's logits; (rows,) bool."""
    return ((probabilities > 0) & (logits <= floor)).any(-1)


def _at(ids: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> list[torch.Tensor]:
    """Gather both sides' shifted logits of the sampled ids, and 1 where this rank holds the id, else 0."""
    here, position = _position(ids, student)
    found = [torch.where(here, block.gather(1, position).squeeze(-1), 0.0) for block in (student, teacher)]
    return [*found, here.to(student.dtype)]


def _position(ids: torch.Tensor, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Locate ids in a block: (rows,) bool, whether this rank holds the id, and its column, (rows, 1)."""
    here = (ids >= 0) & (ids < block.shape[1])
    return here, torch.where(here, ids, 0).unsqueeze(-1)
