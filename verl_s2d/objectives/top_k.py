"""Compute the KL divergences from a teacher's k ids and their log-probabilities, as a cache or a server provides them.

With p the teacher, q the student, K the known ids, P = sum_K p and Q = sum_K q their masses on them:

    forward, bucket       sum_K p (log p - log q) + (1 - P) log((1 - P) / (1 - Q))
                          d/dz:  q - p on K,   q (P - Q) / (1 - Q) elsewhere
    forward, renormalise  sum_K p/P (log(p/P) - log(q/Q))
                          d/dz:  q/Q - p/P on K,   0 elsewhere
    reverse, bucket       D = sum_K q (log q - log p) + (1 - Q) log((1 - Q) / (1 - P))
                          d/dz:  q (log q - log p - D) on K,   q (log((1 - Q) / (1 - P)) - D) elsewhere
    reverse, renormalise  D = sum_K q/Q (log(q/Q) - log(p/P));  d/dz:  q/Q (log(q/Q) - log(p/P) - D) on K,   0 elsewhere

The bucket is the KL of the two distributions after merging all ids outside K into one: never negative, and zero only
where the merged distributions agree. The chain rule relates the three:

    exact = bucket + (1 - P) KL(teacher outside K || student outside K)        reverse: (1 - Q) KL(student || teacher)
    bucket = KL(Bernoulli(P) || Bernoulli(Q)) + P renormalise                  reverse: P and Q change places

Biases. bucket is at most the exact KL (data-processing inequality); it misses the shape of the teacher's tail: its
gradient scales all ids outside K by one factor. renormalise ignores the mass outside K: it costs nothing at Q = 0.01
with the right proportions on K. The sum over K alone is no KL: forward it is lowest at Q = 1, and reversed its gradient
has 1 + log((1 - Q) / (1 - P)) times that of Q too many, a push of probability out of K (Many Faces, arXiv 2605.11182).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from verl_s2d.objectives.chunks import as_logits, parts, shared_size, tokens_at_a_time, wanted_rows
from verl_s2d.objectives.first_derivative import first_derivative
from verl_s2d.objectives.gemm import add_head_gradient, hidden_gradient, operand
from verl_s2d.objectives.logits import GivenLogits, LinearLogits
from verl_s2d.objectives.vocabulary import VocabularyShard, WholeVocabulary

OBJECTIVES = ("forward_kl", "reverse_kl")
TAILS = ("bucket", "renormalise")
_FLOOR = -1e30
# Tolerance on log P for rounding of stored log-probabilities; bfloat16 adds up to 0.03.
_LOG_MASS_SLACK = 0.1


class TopKDivergence(NamedTuple):
    """Per-token results, each (tokens,): float64 for a float64 student, else float32; zero where the mask is zero.

    Attributes:
        divergence: nats; the only differentiable result, with respect to the student.
        student_mass: Q, the student's mass on the teacher's ids.
        teacher_mass: P, at most 1.
    """

    divergence: torch.Tensor
    student_mass: torch.Tensor
    teacher_mass: torch.Tensor


@dataclass(frozen=True)
class _Settings:
    """Settings of a pass: `columns` real ids are on this rank; `covered`: the known ids are the whole vocabulary."""

    objective: str
    tail: str
    columns: int
    covered: bool
    chunk_tokens: int
    vocabulary: WholeVocabulary | VocabularyShard


@torch.compiler.disable
def top_k_divergence(
    student: torch.Tensor | LinearLogits,
    top_ids: torch.Tensor,
    top_log_probs: torch.Tensor,
    *,
    objective: str = "forward_kl",
    tail: str = "bucket",
    mask: torch.Tensor | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    shard: VocabularyShard | None = None,
) -> TopKDivergence:
    """Compute each token's KL from a teacher known on k ids; formulas and biases are at the top of this file.

    Backward recomputes the logits of LinearLogits; neither pass holds more than two (chunk_tokens, V) tensors.
    Autocast, torch.compile, logits of -inf and second derivatives: as in `divergence`.

    Args:
        student: logits (tokens, V), or LinearLogits, whose hidden states, head and bias get gradients where they
            require them. Its temperature has to equal the one of the teacher's log-probabilities.
        top_ids: (tokens, k) of an integer dtype, distinct within a row, in any order: the teacher's most likely ids.
            The formulas hold for any other set of ids, too. -1 stands for an id that is no token: its log-probability
            has to be -inf.
        top_log_probs: (tokens, k) of any float dtype, normalised over the whole vocabulary; -inf allowed. Rows whose
            probabilities sum to more than 1, from rounding in a cache, are scaled to 1. Rounding also changes the
            bucket's 1 - P: store float32 if that matters. Reversed, 1 - P counts as at least the dtype's precision
            where an id is unknown, or the student's tail would cost infinitely much because of rounding.
        objective: forward_kl, KL(teacher || student), or reverse_kl, KL(student || teacher).
        tail: bucket or renormalise. With all ids known there is no tail, and both are the exact KL.
        mask: (tokens,), nonzero on the tokens to compare; all when None. The others are left out of every product;
            their results and gradients are zero, and their ids are ignored.
        vocab_size: real size of the vocabulary; ids at or above it have probability zero. V when None.
        chunk_tokens: tokens per chunk; None for the default of `chunk_sizes`.
        shard: this rank's range of ids, when a tensor-parallel group shards logits or head by id. top_ids remain ids
            of the whole vocabulary, whose vocab_size is required; every rank gets the same results.

    Raises:
        ValueError: shapes, dtypes or settings do not fit together. On a CPU also: an id is out of range or repeated, or
            probabilities sum to well over 1; on other devices this check would force a synchronisation.
    """
    student = as_logits(student)
    for name, value, known in (("objective", objective, OBJECTIVES), ("tail", tail, TAILS)):
        if value not in known:
            raise ValueError(f"{name} {value!r} is none of {known}")
    if shard is None:
        columns = vocab_size = shared_size(vocab_size, student.vocab_size)
    elif vocab_size is None:
        raise ValueError("a shard needs vocab_size, the whole vocabulary's size")
    else:
        columns = max(0, min(vocab_size - shard.first, student.vocab_size))
    _check_shapes(student.tokens, top_ids, top_log_probs, vocab_size)
    rows = wanted_rows(mask, student.tokens, student.device)
    ids, log_probs = (known.detach().to(student.device)[rows] for known in (top_ids, top_log_probs))
    if ids.device.type == "cpu":
        _check_values(ids, log_probs, vocab_size)
    chunk_tokens = tokens_at_a_time(chunk_tokens, student.device)
    covered = top_ids.shape[1] == vocab_size
    settings = _Settings(objective, tail, columns, covered, chunk_tokens, shard or WholeVocabulary())
    with torch.autocast(student.device.type, enabled=False):
        return TopKDivergence(*_TopKDivergence.apply(student, rows, ids.long(), log_probs, settings, *student.tensors))


def top_k_forward_kl(
    student: torch.Tensor | LinearLogits, top_ids: torch.Tensor, top_log_probs: torch.Tensor, *, tail: str, **more: Any
) -> TopKDivergence:
    """Compute the forward KL of `top_k_divergence`, which has the arguments and errors: its name in release 0.1."""
    return top_k_divergence(student, top_ids, top_log_probs, objective="forward_kl", tail=tail, **more)


def _check_shapes(tokens: int, ids: torch.Tensor, log_probs: torch.Tensor, vocab_size: int) -> None:
    if ids.shape != log_probs.shape or ids.dim() != 2 or len(ids) != tokens:
        shapes = f"top_ids of shape {tuple(ids.shape)} and top_log_probs of shape {tuple(log_probs.shape)}"
        raise ValueError(f"{shapes} are not (tokens, k) of {tokens} tokens")
    if ids.is_floating_point() or not log_probs.is_floating_point():
        raise ValueError(f"top_ids are {ids.dtype} and top_log_probs {log_probs.dtype}: integers and floats are needed")
    if not 1 <= ids.shape[1] <= vocab_size:
        raise ValueError(f"{ids.shape[1]} ids a token of a vocabulary of {vocab_size}")


def _check_values(ids: torch.Tensor, log_probs: torch.Tensor, vocab_size: int) -> None:
    if not ids.numel():
        return
    absent = (ids == -1) & (log_probs == float("-inf"))
    tokens = ids[~absent]
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(f"top_ids from {int(tokens.min())} to {int(tokens.max())} in a vocabulary of {vocab_size}")
    ids = torch.where(absent, vocab_size + torch.arange(ids.shape[1]), ids)
    if (ids.sort(-1).values.diff(dim=-1) == 0).any():
        raise ValueError("an id comes twice among the top_ids of one token")
    log_mass = log_probs.double().logsumexp(-1).max()
    if log_mass > _LOG_MASS_SLACK:
        raise ValueError(f"top_log_probs are no log-probabilities: a token's probabilities sum to {log_mass.exp():.3g}")


class _TopKDivergence(torch.autograd.Function):
    """Saves only its inputs: apply(student, rows, ids, log_probs, settings, *tensors of student) -> three (tokens,)."""

    @staticmethod
    def forward(ctx, student, rows, ids, log_probs, settings, *tensors):
        ctx.save_for_backward(rows, ids, log_probs, *tensors)
        ctx.rebuild, ctx.settings = student.rebuild, settings
        results = torch.zeros(3, student.tokens, dtype=student.dtype, device=student.device)
        for part, logits in _chunks(student, rows, settings):
            results[:, rows[part]] = _compare_(logits, ids[part], log_probs[part], settings, differentiate=False)
        results = tuple(row.clone() for row in results)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @first_derivative
    def backward(ctx, saved, upstream, *_):
        rows, ids, log_probs, *tensors = saved
        student, wants = ctx.rebuild(*tensors), ctx.needs_input_grad[5:]
        backward = _given_gradient if isinstance(student, GivenLogits) else _linear_gradients
        return *(None,) * 5, *backward(student, rows, ids, log_probs, upstream[rows], ctx.settings, wants)


def _given_gradient(student, rows, ids, log_probs, weights, settings, wants) -> tuple[torch.Tensor | None]:
    gradient = torch.zeros_like(student.logits)
    for part, block in _chunks(student, rows, settings):
        _compare_(block, ids[part], log_probs[part], settings, differentiate=True)
        block = block[:, : settings.columns] * weights[part].unsqueeze(-1)
        gradient[rows[part], : settings.columns] = block.to(gradient.dtype)
    return (gradient,)


def _linear_gradients(
    student, rows, ids, log_probs, weights, settings, wants
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Compute the wanted gradients to hidden (tokens, H), head (V, H) and bias (V,), each in its tensor's dtype."""
    by_hidden, by_head, by_bias = (
        torch.zeros_like(tensor, dtype=student.dtype) if wanted else None
        for tensor, wanted in zip(student.tensors, wants, strict=True)
    )
    columns = settings.columns
    for part, block in _chunks(student, rows, settings):
        slope = None if student.softcap is None else student.slope(block)
        _compare_(block, ids[part], log_probs[part], settings, differentiate=True)
        if slope is not None:
            block *= slope
        block, scale = block[:, :columns], (weights[part] / student.temperature).unsqueeze(-1)
        if by_bias is not None:
            by_bias[:columns] += (block.T @ scale).squeeze(-1)
        head = student.head[:columns]
        block = operand(block, head)
        if by_hidden is not None:
            by_hidden[rows[part]] = settings.vocabulary.total(hidden_gradient(block, head, student.dtype)) * scale
        if by_head is not None:
            add_head_gradient(by_head[:columns], block, student.hidden[rows[part]] * scale)
    return tuple(
        None if total is None else total.to(tensor.dtype)
        for total, tensor in zip((by_hidden, by_head, by_bias), student.tensors, strict=True)
    )


def _chunks(student: GivenLogits | LinearLogits, rows: torch.Tensor, settings: _Settings):
    """Yield each chunk's slice of rows and its logits, (tokens, columns), in one reused buffer."""
    size = max(1, min(settings.chunk_tokens, len(rows)))
    # A shard that holds only padding still joins the reductions, with one id of zero probability.
    buffer = torch.empty(size, max(1, settings.columns), dtype=student.dtype, device=student.device)
    for part in parts(len(rows), size):
        logits = buffer[: part.stop - part.start]
        yield part, student.write(rows[part], logits) if settings.columns else logits.fill_(float("-inf"))


def _compare_(
    logits: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor, settings: _Settings, *, differentiate: bool
) -> torch.Tensor:
    """Compute the fields of TopKDivergence, (3, rows); logits, (rows, ids here), become the gradient, or scratch."""
    vocabulary = settings.vocabulary
    ids = ids - vocabulary.first
    here = (ids >= 0) & (ids < logits.shape[1])
    place = torch.where(here, ids, 0)
    top = vocabulary.maximum(torch.where(here, logits.gather(1, place), float("-inf")))
    # The student's tail is summed: 1 - Q loses all digits where Q is near 1. The sum is relative to the tail's own
    # maximum and log-probabilities to the row's, so logits of 1e4 lose no precision.
    logits.scatter_add_(1, place, torch.where(here, float("-inf"), 0.0).to(logits.dtype))
    best = vocabulary.maximum(logits.amax(-1)).clamp(min=_FLOOR)
    tail = logits.sub_(best.unsqueeze(-1)).exp_()
    tail_sum = vocabulary.total(tail.sum(-1))
    highest = torch.maximum(best, top.amax(-1))
    log_q = top - highest.unsqueeze(-1)
    log_tail, log_top = tail_sum.log() + (best - highest), log_q.logsumexp(-1)
    log_sum = torch.logaddexp(log_top, log_tail)
    log_tail, log_mass = log_tail - log_sum, log_top - log_sum
    log_q = top.log_softmax(-1) if settings.tail == "renormalise" else log_q - log_sum.unsqueeze(-1)

    teacher = _Teacher.of(log_probs, settings, logits.dtype)
    bucket, forward = settings.tail == "bucket", settings.objective == "forward_kl"
    q, q_tail = log_q.exp(), log_tail.exp()
    excess, tail_excess = log_q - teacher.log_p, log_tail - teacher.log_tail
    if forward:
        divergence, of_tail = _expectation(teacher.p, -excess).sum(-1), _expectation(teacher.tail, -tail_excess)
    else:
        divergence, of_tail = _expectation(q, excess).sum(-1), _expectation(q_tail, tail_excess)
    divergence = divergence + of_tail if bucket else divergence
    if differentiate:
        if bucket:
            # The tail's own softmax times the gradient to its mass. tail_sum is 0 without a tail, otherwise at least 1.
            on_tail = q_tail - teacher.tail if forward else _expectation(q_tail, tail_excess - divergence)
            tail.mul_((on_tail / tail_sum.clamp(min=1)).unsqueeze(-1))
        else:
            tail.zero_()
        on_top = q - teacher.p if forward else _expectation(q, excess - divergence.unsqueeze(-1))
        tail.scatter_add_(1, place, torch.where(here, on_top, 0.0))
    # Rounding can take a divergence below zero.
    return torch.stack((divergence.clamp(min=0), log_mass.exp(), teacher.mass))


class _Teacher(NamedTuple):
    """Probabilities of the known ids, (rows, k), summing to 1 without a tail; their mass P and 1 - P, (rows,)."""

    p: torch.Tensor
    log_p: torch.Tensor
    mass: torch.Tensor
    tail: torch.Tensor
    log_tail: torch.Tensor

    @staticmethod
    def of(log_probs: torch.Tensor, settings: _Settings, dtype: torch.dtype) -> _Teacher:
        # In float64, affordable for k numbers a token, 1 - P is as exact as the log-probabilities.
        log_p = log_probs.double()
        log_mass = log_p.logsumexp(-1)
        whole = settings.covered or settings.tail == "renormalise"
        log_p = log_p - (log_mass if whole else log_mass.clamp(min=0)).unsqueeze(-1)
        log_mass = log_mass.clamp(max=0)
        tail = torch.zeros_like(log_mass) if settings.covered else -log_mass.expm1()
        if settings.objective == "reverse_kl" and not settings.covered:
            tail = tail.clamp(min=torch.finfo(log_probs.dtype).eps)
        return _Teacher(*(part.to(dtype) for part in (log_p.exp(), log_p, log_mass.exp(), tail, tail.log())))


def _expectation(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Multiply probabilities and values, with 0 times anything equal to 0."""
    return torch.where(probabilities == 0, 0.0, probabilities * values)
