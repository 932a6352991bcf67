"""One pass over the tokens, a chunk at a time: logits of both sides, their comparison, and the student's gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from verl_s2d.objectives.buffers import empty, empty_rows
from verl_s2d.objectives.chunks import parts
from verl_s2d.objectives.divergence_kernel import compare_
from verl_s2d.objectives.fused import ROWS, compare_fused_
from verl_s2d.objectives.gemm import add_head_gradient, hidden_gradient, operand
from verl_s2d.objectives.logits import GivenLogits, LinearLogits
from verl_s2d.objectives.vocabulary import Exchange, VocabularyShard, WholeVocabulary

# Blocks of the elementwise work on a CPU: four of them, the two of logits and two of probabilities, fit a core's cache.
_BLOCK_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Settings:
    """Settings of a pass. `columns` real ids of the student are held here, the teacher's of them after `exchange`.

    `masked`: logits may be -inf.
    """

    objective: str
    beta: float
    columns: int
    masked: bool
    chunk_tokens: int
    vocabulary: WholeVocabulary | VocabularyShard
    exchange: Exchange | None = None
    compiled: bool = False


class Gradients(NamedTuple):
    """Of each row's own divergence to its hidden state, (rows, H); of the weighted sum to head (V, H) and bias (V,)."""

    hidden: torch.Tensor | None
    head: torch.Tensor | None
    bias: torch.Tensor | None


def compare_rows(
    student: GivenLogits | LinearLogits,
    teacher: GivenLogits | LinearLogits,
    rows: torch.Tensor,
    ids: torch.Tensor | None,
    settings: Settings,
) -> torch.Tensor:
    """(6, len(rows)) values of divergence.Divergence."""
    values = _empty_values(student, teacher, rows)
    for part, block in _chunks(student, teacher, rows, settings):
        for piece in _pieces(block[0], settings):
            result = _compare(block, piece, part, ids, settings)
            values[:, part][:, piece] = result.values
    return values


def linear_gradients(
    student: LinearLogits,
    teacher: GivenLogits | LinearLogits,
    rows: torch.Tensor,
    ids: torch.Tensor | None,
    weights: torch.Tensor,
    settings: Settings,
    *,
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, Gradients]:
    """Values and, in the same pass, the wanted gradients to (hidden, head, bias); weights is (len(rows),)."""
    values = _empty_values(student, teacher, rows)
    dtype, device = values.dtype, values.device
    wants_hidden, wants_head, wants_bias = wants
    by_hidden = torch.empty(len(rows), student.hidden.shape[1], dtype=dtype, device=device) if wants_hidden else None
    by_head = empty(*student.head.shape, dtype=dtype, device=device) if wants_head else None
    by_bias = torch.zeros(student.vocab_size, dtype=dtype, device=device) if wants_bias else None
    columns = settings.columns
    if by_head is not None:
        by_head[columns if len(rows) else 0 :] = 0  # no chunk writes there
    for part, block in _chunks(student, teacher, rows, settings):
        gradient = block[0]
        scale = gradient.new_empty(len(gradient))
        for piece in _pieces(gradient, settings):
            slope = None if student.softcap is None else student.slope(gradient[piece])
            result = _compare(block, piece, part, ids, settings)
            values[:, part][:, piece] = result.values
            scale[piece] = result.scale
            if slope is not None:
                gradient[piece] *= slope
        gradient, scale = gradient[:, :columns], scale.unsqueeze(-1) / student.temperature
        weighted = scale * weights[part].unsqueeze(-1)
        if by_bias is not None:
            by_bias[:columns] += (gradient.T @ weighted).squeeze(-1)
        head = student.head[:columns]
        gradient = operand(gradient, head, block[1, :, :columns])  # the teacher's logits have been read
        if by_hidden is not None:
            by_hidden[part] = settings.vocabulary.total(hidden_gradient(gradient, head, dtype) * scale)
        if by_head is not None:
            hidden = student.hidden[rows[part]] * weighted
            add_head_gradient(by_head[:columns], gradient, hidden, first=part.start == 0)
    return values, Gradients(by_hidden, by_head, by_bias)


def logits_gradient_(
    out: torch.Tensor,
    student: GivenLogits,
    teacher: GivenLogits | LinearLogits,
    rows: torch.Tensor,
    ids: torch.Tensor | None,
    weights: torch.Tensor,
    settings: Settings,
) -> None:
    """Add the weighted gradient to the student's logits to these rows of out, (tokens, V)."""
    for part, block in _chunks(student, teacher, rows, settings):
        for piece in _pieces(block[0], settings):
            result = _compare(block, piece, part, ids, settings)
            block[0][piece] *= (result.scale * weights[part][piece]).unsqueeze(-1)
        out[rows[part], : settings.columns] += block[0][:, : settings.columns].to(out.dtype)


def _chunks(student, teacher, rows, settings):
    """Each chunk's slice of rows with (2, tokens, columns) logits: the student's and the teacher's, in one buffer."""
    size = max(1, min(settings.chunk_tokens, len(rows)))
    # A shard of nothing but padding still takes part in the reductions, with one id that has no mass.
    columns, exchange = max(1, settings.columns), settings.exchange
    buffer = empty_rows(2, size, columns, dtype=_dtype(student, teacher), device=student.device)
    held = None if exchange is None else buffer.new_empty(size, exchange.held)
    for part in parts(len(rows), size):
        block = buffer[:, : part.stop - part.start]
        if not settings.columns:
            block.fill_(float("-inf"))
        else:
            student.write(rows[part], block[0])
            if exchange is None:
                teacher.write(rows[part], block[1])
        if exchange is not None:
            exchange(teacher.write(rows[part], held[: len(block[1])]), block[1])
        yield part, block


def _pieces(logits: torch.Tensor, settings: Settings) -> list[slice]:
    """Blocks of rows for the elementwise work: small where a cache is to be used, whole where ranks must meet."""
    rows, columns = logits.shape
    size = rows
    if not logits.is_cuda and not settings.vocabulary.parallel:
        size = max(ROWS if settings.compiled else 1, _BLOCK_ELEMENTS * torch.get_num_threads() // columns)
    return list(parts(rows, size))


def _compare(block, piece, part, ids, settings):
    here = None if ids is None else ids[part][piece] - settings.vocabulary.first
    if here is not None and not settings.columns:
        here.fill_(-1)  # the one id that stands in for none must not be taken for a sampled one
    masked = settings.masked or settings.columns == 0
    compare = compare_fused_ if settings.compiled else compare_
    return compare(
        block[0][piece], block[1][piece], here, settings.objective, settings.beta, settings.vocabulary, masked
    )


def _dtype(student, teacher) -> torch.dtype:
    return torch.promote_types(student.dtype, teacher.dtype)


def _empty_values(student, teacher, rows) -> torch.Tensor:
    return torch.empty(6, len(rows), dtype=_dtype(student, teacher), device=student.device)
