"""Exact full-vocabulary forward KL per token, from logits.

    KL(p_T || p_S) = sum_v p_T(v) (log p_T(v) - log p_S(v)),     d KL / d z_S(v) = p_S(v) - p_T(v)

Stage 2a of arXiv 2605.12483: E_{s ~ teacher rollouts} KL(pi_T(.|s) || pi_S(.|s)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class ForwardKL(NamedTuple):
    """Per-token results, each (rows,) float32. Only `kl` carries a gradient, and only to the student's logits."""

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
    """KL(p_T || p_S) of selected tokens over the full vocabulary, computed in float32 whatever the input dtype.

    Beyond the given logits and their gradient no tensor larger than chunk_tokens x vocabulary exists.

    Args:
        student_logits: (tokens, V_s).
        teacher_logits: (tokens, V_t), taken as constant.
        rows: (rows,) int64 indices of the tokens wanted; all of them when None. The others cost nothing and get
            zero gradient.
        vocab_size: real size of the shared vocabulary; ids from there on are padding with probability zero on both
            sides. min(V_s, V_t) when None.
        chunk_tokens: tokens worked on at a time.

    Raises:
        ValueError: token counts differ, or vocab_size exceeds one of the vocabularies.
    """
    if student_logits.shape[0] != teacher_logits.shape[0]:
        raise ValueError(f"student has {student_logits.shape[0]} tokens, teacher {teacher_logits.shape[0]}")
    shared = min(student_logits.shape[1], teacher_logits.shape[1])
    if vocab_size is not None and vocab_size > shared:
        raise ValueError(f"vocab_size {vocab_size} exceeds the logits' {shared}")
    if rows is None:
        rows = torch.arange(student_logits.shape[0], device=student_logits.device)
    results = _ForwardKL.apply(student_logits, teacher_logits.detach(), rows, vocab_size or shared, chunk_tokens)
    return ForwardKL(*results)


class _ForwardKL(torch.autograd.Function):
    """Saves the two log-normalisers a token and recomputes the distributions chunk by chunk in backward."""

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, rows, vocab_size, chunk_tokens):
        results = [student_logits.new_empty(len(rows), dtype=torch.float32) for _ in range(4)]
        normalisers = [student_logits.new_empty(len(rows), dtype=torch.float32) for _ in range(2)]
        for begin in range(0, len(rows), chunk_tokens):
            part = slice(begin, begin + chunk_tokens)
            log_s, lse_s = _log_softmax(student_logits, rows[part], vocab_size)
            log_t, lse_t = _log_softmax(teacher_logits, rows[part], vocab_size)
            p_s, p_t = log_s.exp(), log_t.exp()
            normalisers[0][part], normalisers[1][part] = lse_s, lse_t
            # 0 log 0 = 0: a token that is impossible under p contributes nothing to an expectation under p.
            results[0][part] = torch.where(p_t > 0, p_t * (log_t - log_s), 0.0).sum(-1)
            results[1][part] = -torch.where(p_s > 0, p_s * log_s, 0.0).sum(-1)
            results[2][part] = -torch.where(p_t > 0, p_t * log_t, 0.0).sum(-1)
            results[3][part] = (log_s.argmax(-1) == log_t.argmax(-1)).float()
        ctx.save_for_backward(student_logits, teacher_logits, rows, *normalisers)
        ctx.vocab_size, ctx.chunk_tokens = vocab_size, chunk_tokens
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    def backward(ctx, grad_kl, *_):
        student_logits, teacher_logits, rows, lse_s, lse_t = ctx.saved_tensors
        grad = torch.zeros_like(student_logits)
        for begin in range(0, len(rows), ctx.chunk_tokens):
            part = slice(begin, begin + ctx.chunk_tokens)
            p_s = _probabilities(student_logits, rows[part], ctx.vocab_size, lse_s[part])
            p_t = _probabilities(teacher_logits, rows[part], ctx.vocab_size, lse_t[part])
            p_s.sub_(p_t).mul_(grad_kl[part].unsqueeze(-1))
            grad[rows[part], : ctx.vocab_size] = p_s.to(grad.dtype)
        return grad, None, None, None, None


def _log_softmax(logits: torch.Tensor, rows: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    chunk = logits[rows, :vocab_size].float()
    lse = chunk.logsumexp(-1)
    return chunk - lse.unsqueeze(-1), lse


def _probabilities(logits: torch.Tensor, rows: torch.Tensor, vocab_size: int, lse: torch.Tensor) -> torch.Tensor:
    return (logits[rows, :vocab_size].float() - lse.unsqueeze(-1)).exp_()
