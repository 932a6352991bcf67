"""Exact full-vocabulary forward KL per token, from logits.

    KL(p_T || p_S) = sum_v p_T(v) (log p_T(v) - log p_S(v)),     d KL / d z_S(v) = p_S(v) - p_T(v)

Stage 2a of arXiv 2605.12483: E_{s ~ teacher rollouts} KL(pi_T(.|s) || pi_S(.|s)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable


class ForwardKL(NamedTuple):
    """Per-token results, each (rows,). Only `kl` carries a gradient, and only to the student's logits."""

    kl: torch.Tensor
    student_entropy: torch.Tensor
    teacher_entropy: torch.Tensor
    top1_agreement: torch.Tensor


def forward_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int = 1024,
) -> ForwardKL:
    """KL(p_T || p_S) of selected tokens over the full vocabulary, in float32 or, of float64 logits, in float64.

    Beyond the given logits and the student's gradient no tensor larger than chunk_tokens x vocabulary exists.

    Args:
        student_logits: (tokens, V_s).
        teacher_logits: (tokens, V_t), taken as constant.
        rows: (rows,) int64 indices, each at most once, of the tokens wanted; all of them when None. The others cost
            nothing and get zero gradient.
        vocab_size: real size of the shared vocabulary; ids from there on are padding with probability zero on both
            sides. min(V_s, V_t) when None.
        chunk_tokens: tokens worked on at a time.

    Raises:
        ValueError: token counts differ, or vocab_size is not between 1 and the smaller vocabulary.
    """
    if student_logits.shape[0] != teacher_logits.shape[0]:
        raise ValueError(f"student has {student_logits.shape[0]} tokens, teacher {teacher_logits.shape[0]}")
    shared = min(student_logits.shape[1], teacher_logits.shape[1])
    if vocab_size is None:
        vocab_size = shared
    if not 1 <= vocab_size <= shared:
        raise ValueError(f"vocab_size {vocab_size} is not between 1 and the logits' {shared}")
    if rows is None:
        rows = torch.arange(student_logits.shape[0], device=student_logits.device)
    results = _ForwardKL.apply(student_logits, teacher_logits.detach(), rows, vocab_size, chunk_tokens)
    return ForwardKL(*results)


class _ForwardKL(torch.autograd.Function):
    """Saves the logits it was given and nothing else; backward takes both softmaxes again, chunk by chunk.

    Not even the log-normalisers are saved: beside logits of 1e4, float32 would round them to 1e-3.
    """

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, rows, vocab_size, chunk_tokens):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        results = [student_logits.new_empty(len(rows), dtype=dtype) for _ in ForwardKL._fields]
        for begin in range(0, len(rows), chunk_tokens):
            part = slice(begin, begin + chunk_tokens)
            log_s = torch.log_softmax(student_logits[rows[part], :vocab_size], -1, dtype=dtype)
            log_t = torch.log_softmax(teacher_logits[rows[part], :vocab_size], -1, dtype=dtype)
            p_t = log_t.exp()
            results[3][part] = log_s.argmax(-1) == log_t.argmax(-1)
            results[2][part] = -_expectation(p_t, log_t)
            results[0][part] = _expectation(p_t, log_t - log_s)
            results[1][part] = -_expectation(log_s.exp(), log_s)
        ctx.save_for_backward(student_logits, teacher_logits, rows)
        ctx.vocab_size, ctx.chunk_tokens = vocab_size, chunk_tokens
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_kl, *_):
        student_logits, teacher_logits, rows = ctx.saved_tensors
        grad = torch.zeros_like(student_logits)
        for begin in range(0, len(rows), ctx.chunk_tokens):
            part = slice(begin, begin + ctx.chunk_tokens)
            difference = torch.softmax(student_logits[rows[part], : ctx.vocab_size], -1, dtype=grad_kl.dtype)
            difference -= torch.softmax(teacher_logits[rows[part], : ctx.vocab_size], -1, dtype=grad_kl.dtype)
            difference *= grad_kl[part].unsqueeze(-1)
            grad[rows[part], : ctx.vocab_size] = difference.to(grad.dtype)
        return grad, None, None, None, None


def _expectation(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """sum_v p(v) values(v) of each row, where 0 times anything is 0; (tokens,). NaN stays visible."""
    return (probabilities * values).masked_fill_(probabilities == 0, 0.0).sum(-1)
