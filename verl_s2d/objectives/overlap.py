"""Measure how far student and teacher agree on the likely next tokens: the health of on-policy distillation.

With S and T the k most likely ids of student and teacher at a token:

    overlap ratio            |S and T| / k
    teacher's mass on S      sum_S p_T, the teacher's probability of the student's candidates
    student's mass on T      sum_T p_S, the student's probability that a teacher's top-k signal covers
    student's mass on both   sum_{S and T} p_S
    reverse KL by set        sum p_S (log p_S - log p_T) over S and T, over S alone, over T alone

The three sums and the ids outside of both sets add up to KL(p_S || p_T).

"Rethinking On-Policy Distillation" (arXiv 2604.13016, health metrics): successful runs raise the overlap, failing runs
do not; in good runs 97 to 99 % of the mass is on both. It logs the mean advantage of each set, to which every id
contributes alike; here an id contributes with its probability, as it does to the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from verl_s2d.objectives.chunks import as_logits, parts, shared_size, tokens_at_a_time, wanted_rows
from verl_s2d.objectives.logits import LinearLogits

QUARTERS = 4
"""Parts of a response by position."""


class TopKHealth(NamedTuple):
    """Per-token results, each (tokens,): float64 for float64 inputs, else float32; zero where masked out.

    The ratio and the masses are in [0, 1], the terms of the reverse KL in nats. Take means over the masked-in tokens
    only.
    """

    overlap_ratio: torch.Tensor
    teacher_mass_on_student_top: torch.Tensor
    student_mass_on_teacher_top: torch.Tensor
    student_mass_on_both: torch.Tensor
    reverse_kl_on_both: torch.Tensor
    reverse_kl_on_student_only: torch.Tensor
    reverse_kl_on_teacher_only: torch.Tensor


@torch.compiler.disable
@torch.no_grad()
def top_k_health(
    student: torch.Tensor | LinearLogits,
    teacher: torch.Tensor | LinearLogits,
    *,
    k: int = 16,
    mask: torch.Tensor | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
) -> TopKHealth:
    """Compute each token's overlap of the two top-k sets and each model's mass on the other's set. No gradients.

    Two (chunk_tokens, V) tensors exist at a time. torch.topk breaks ties between equal logits.

    Args:
        student: logits (tokens, V_s), or LinearLogits.
        teacher: logits (tokens, V_t), or LinearLogits.
        k: size of the sets.
        mask: (tokens,), nonzero on the tokens to compare; all tokens when None.
        vocab_size: real size of the shared vocabulary; ids at or above it are ignored. min(V_s, V_t) when None.
        chunk_tokens: tokens per chunk; None for the default of `chunk_sizes`.

    Raises:
        ValueError: shapes, vocab_size or chunk_tokens do not fit, or k is not between 1 and the vocabulary's size.
    """
    student, teacher = as_logits(student), as_logits(teacher)
    if student.tokens != teacher.tokens:
        raise ValueError(f"student has {student.tokens} tokens, teacher {teacher.tokens}")
    columns = shared_size(vocab_size, min(student.vocab_size, teacher.vocab_size))
    if not 1 <= k <= columns:
        raise ValueError(f"k {k} is not between 1 and the vocabulary's {columns}")
    rows = wanted_rows(mask, student.tokens, student.device)
    size = max(1, min(tokens_at_a_time(chunk_tokens, student.device), len(rows)))
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    buffer = torch.empty(2, size, columns, dtype=dtype, device=student.device)
    results = torch.zeros(len(TopKHealth._fields), student.tokens, dtype=dtype, device=student.device)
    for part in parts(len(rows), size):
        block = buffer[:, : part.stop - part.start]
        with torch.autocast(student.device.type, enabled=False):
            for side, logits in zip((student, teacher), block, strict=True):
                side.write(rows[part], logits)
        results[:, rows[part]] = _compare_(block, k)
    return TopKHealth(*results)


def _compare_(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Compute the fields of TopKHealth, (fields, rows), from logits (2, rows, ids), which are overwritten."""
    best, ids = logits.topk(k, dim=-1)
    same = ids[0].unsqueeze(-1) == ids[1].unsqueeze(-2)
    in_teacher, in_student = same.any(-1), same.any(-2)
    overlap = in_teacher.to(logits.dtype).mean(-1)
    # Each model's logits at the other's ids: the student's on T, then the teacher's on S.
    across, highest = logits.gather(-1, ids.flip(0)), best[..., :1]
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    masses = (across - highest).exp_().sum(-1).div_(total.squeeze(-1)).flip(0)
    own, others = ((values - highest).sub_(total.log()) for values in (best, across))
    on_student, mass = _reverse_kl_terms(own[0], others[1]), own[0].exp()
    on_teacher = _reverse_kl_terms(others[0], own[1])
    terms = (
        (mass * in_teacher).sum(-1),
        torch.where(in_teacher, on_student, 0.0).sum(-1),
        torch.where(in_teacher, 0.0, on_student).sum(-1),
        torch.where(in_student, 0.0, on_teacher).sum(-1),
    )
    return torch.stack((overlap, *masses, *terms))


def _reverse_kl_terms(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Compute p_S (log p_S - log p_T) of ids from both log-probs; 0 log 0 is 0."""
    probabilities = student.exp()
    return torch.where(probabilities > 0, probabilities * (student - teacher), 0.0)


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
