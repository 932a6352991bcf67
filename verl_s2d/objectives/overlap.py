"""Measure how far student and teacher agree on the likely next tokens: the health of on-policy distillation.

With S and T the k most likely ids of student and teacher at a token:

    overlap ratio            |S and T| / k
    teacher's mass on S      sum_S p_T, the teacher's probability of the student's candidates
    student's mass on T      sum_T p_S, the student's probability that a teacher's top-k signal covers

"Rethinking On-Policy Distillation" (arXiv 2604.13016): successful runs raise the overlap, failing runs do not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from verl_s2d.objectives.chunks import as_logits, parts, shared_size, tokens_at_a_time, wanted_rows
from verl_s2d.objectives.logits import LinearLogits


class TopKHealth(NamedTuple):
    """Per-token results in [0, 1], each (tokens,): float64 for float64 inputs, else float32; zero where masked out.

    Take means over the masked-in tokens only.
    """

    overlap_ratio: torch.Tensor
    teacher_mass_on_student_top: torch.Tensor
    student_mass_on_teacher_top: torch.Tensor


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
    results = torch.zeros(3, student.tokens, dtype=dtype, device=student.device)
    for part in parts(len(rows), size):
        block = buffer[:, : part.stop - part.start]
        with torch.autocast(student.device.type, enabled=False):
            for side, logits in zip((student, teacher), block, strict=True):
                side.write(rows[part], logits)
        results[:, rows[part]] = _compare_(block, k)
    return TopKHealth(*results)


def _compare_(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Compute the fields of TopKHealth, (3, rows), from logits (2, rows, ids), which are overwritten."""
    best, ids = logits.topk(k, dim=-1)
    shared = (ids[0].unsqueeze(-1) == ids[1].unsqueeze(-2)).any(-1)
    overlap = shared.to(logits.dtype).mean(-1, keepdim=True)
    weights = logits.sub_(best[..., :1]).exp_()
    # Each model's weights at the other's ids: the teacher's on S, then the student's on T.
    masses = weights.gather(-1, ids.flip(0)).sum(-1).div_(weights.sum(-1)).flip(0)
    return torch.cat((overlap.T, masses))
