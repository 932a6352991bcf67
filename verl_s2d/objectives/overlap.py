"""How far student and teacher agree on what may come next: the health of an on-policy distillation.

With S and T the k most likely ids of student and teacher at a token:

    overlap ratio            |S and T| / k
    teacher's mass on S      sum_S p_T: what the teacher thinks of the student's candidates
    student's mass on T      sum_T p_S: how much of the student a top-k signal of the teacher reaches

"Rethinking On-Policy Distillation" (arXiv 2604.13016): runs that work raise the overlap, runs that fail do not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from verl_s2d.objectives.chunks import as_logits, parts, shared_size, tokens_at_a_time, wanted_rows
from verl_s2d.objectives.logits import LinearLogits


class TopKHealth(NamedTuple):
    """Per-token results between 0 and 1, each (tokens,), float32 or of float64 inputs float64; zero where the mask is.

    Means are to be taken over the tokens of the mask.
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
    """Overlap of the two top-k sets of each token and the mass that each model puts on the other's. No gradients.

    Two (chunk_tokens, V) tensors exist at a time. Among equal logits which ids are in a set is left to torch.topk.

    Args:
        student: logits (tokens, V_s), or LinearLogits.
        teacher: logits (tokens, V_t), or LinearLogits.
        k: size of the sets.
        mask: (tokens,), nonzero on tokens wanted, everywhere when None; the others are not computed.
        vocab_size: real size of the shared vocabulary; ids from there on do not count. min(V_s, V_t) when None.
        chunk_tokens: tokens worked on at a time; None for the default of `chunk_sizes`.

    Raises:
        ValueError: shapes, vocab_size or chunk_tokens that make no sense, or k not between 1 and the vocabulary.
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
    """(3, rows) values of TopKHealth, of logits (2, rows, ids), which become scratch."""
    best, ids = logits.topk(k, dim=-1)
    shared = (ids[0].unsqueeze(-1) == ids[1].unsqueeze(-2)).any(-1)
    overlap = shared.to(logits.dtype).mean(-1, keepdim=True)
    weights = logits.sub_(best[..., :1]).exp_()
    # Each side's weights at the other's ids: teacher's on S, then student's on T.
    masses = weights.gather(-1, ids.flip(0)).sum(-1).div_(weights.sum(-1)).flip(0)
    return torch.cat((overlap.T, masses))
