"""Compute divergences and the student's gradients in one pass over the tokens, chunk by chunk."""

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
    """Settings of a pass.

    Attributes:
        columns: real ids of the student on this rank; the teacher's logits have the same ids after `exchange`.
        masked: logits may be -inf.
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
    """Gradients of a pass; None where not wanted.

    Attributes:
        hidden: (rows, H), gradient of each row's own, unweighted divergence.
        head, bias: (V, H) and (V,), gradients of the weighted sum.
    """

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
    """Compute the fields of divergence.Divergence for these rows; (6, len(rows))."""
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
    """Compute the values and, in the same pass, the wanted gradients to (hidden, head, bias); weights: (len(rows),)."""
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
    """Add the weighted gradient with respect to the student's logits to the given rows of out, (tokens, V)."""
    for part, block in _chunks(student, teacher, rows, settings):
        for piece in _pieces(block[0], settings):
            result = _compare(block, piece, part, ids, settings)
            block[0][piece] *= (result.scale * weights[part][piece]).unsqueeze(-1)
        out[rows[part], : settings.columns] += block[0][:, : settings.columns].to(out.dtype)


def _chunks(student, teacher, rows, settings):
    """Yield each chunk's slice of rows and its logits, student and teacher in one buffer: (2, tokens, columns)."""
    size = max(1, min(settings.chunk_tokens, len(rows)))
    # A shard that holds only padding still joins the reductions, with one id of zero probability.
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
    """Split rows into blocks for the elementwise work: cache-sized on a CPU, one block where ranks reduce together."""
    rows, columns = logits.shape
    size = rows
    if not logits.is_cuda and not settings.vocabulary.parallel:
        size = max(ROWS if settings.compiled else 1, _BLOCK_ELEMENTS * torch.get_num_threads() // columns)
    return list(parts(rows, size))


def _compare(block, piece, part, ids, settings):
    here = None if ids is None else ids[part][piece] - settings.vocabulary.first
    if here is not None and not settings.columns:
        here.fill_(-1)  # the placeholder id of an empty shard must not match a sampled id
    masked = settings.masked or settings.columns == 0
    compare = compare_fused_ if settings.compiled else compare_
    return compare(
        block[0][piece], block[1][piece], here, settings.objective, settings.beta, settings.vocabulary, masked
    )


def _dtype(student, teacher) -> torch.dtype:
    return torch.promote_types(student.dtype, teacher.dtype)


def _empty_values(student, teacher, rows) -> torch.Tensor:
    return torch.empty(6, len(rows), dtype=_dtype(student, teacher), device=student.device)
