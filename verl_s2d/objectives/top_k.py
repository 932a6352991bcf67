"""Forward KL from a teacher of which only k ids and their log-probabilities are known: a cache's, or a server's.

With p the teacher, q the student, K the known ids, P = sum_K p and Q = sum_K q their masses on them:

    bucket       sum_K p (log p - log q) + (1 - P) log((1 - P) / (1 - Q))
                 d/dz:  q - p on K,   q (P - Q) / (1 - Q) elsewhere
    renormalise  sum_K p/P (log(p/P) - log(q/Q))
                 d/dz:  q/Q - p/P on K,   0 elsewhere

The bucket is the KL of the two distributions after every id outside K has been merged into one, so it is proper: not
negative, zero only where they agree, and nothing is clamped. The two and the exact KL are tied by the chain rule

    exact = bucket + (1 - P) KL(teacher outside K || student outside K)
    bucket = KL(Bernoulli(P) || Bernoulli(Q)) + P renormalise

Biases. bucket is at most the exact KL (data-processing inequality), by what the teacher says about the tail's shape:
all ids outside K are scaled by one factor and keep their proportions. renormalise is also blind to how much mass lies
outside: a student with Q = 0.01 and the right proportions in it costs nothing, and it is no bound of the exact KL.
Neither is p (log p - log q) summed over K with no bucket: that goes negative, and is least where Q = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from verl_s2d.objectives.chunks import as_logits, parts, shared_size, tokens_at_a_time, wanted_rows
from verl_s2d.objectives.first_derivative import first_derivative
from verl_s2d.objectives.gemm import add_head_gradient, hidden_gradient, operand
from verl_s2d.objectives.logits import GivenLogits, LinearLogits
from verl_s2d.objectives.vocabulary import VocabularyShard, WholeVocabulary

TAILS = ("bucket", "renormalise")
_FLOOR = -1e30
# What rounding of stored log-probabilities can add to log P; bfloat16 makes up to 0.03 of it.
_LOG_MASS_SLACK = 0.1


class TopKForwardKL(NamedTuple):
    """Per-token results, each (tokens,), float32 or of a float64 student float64; zero where the mask is.

    Attributes:
        divergence: nats; the only one with a gradient, and that to the student alone.
        student_mass: Q, the student's on the teacher's ids.
        teacher_mass: P, at most 1.
    """

    divergence: torch.Tensor
    student_mass: torch.Tensor
    teacher_mass: torch.Tensor


@dataclass(frozen=True)
class _Settings:
    """`columns` real ids are held here; `covered` says that the known ids are the whole vocabulary."""

    tail: str
    columns: int
    covered: bool
    chunk_tokens: int
    vocabulary: WholeVocabulary | VocabularyShard


@torch.compiler.disable
def top_k_forward_kl(
    student: torch.Tensor | LinearLogits,
    top_ids: torch.Tensor,
    top_log_probs: torch.Tensor,
    *,
    tail: str,
    mask: torch.Tensor | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    shard: VocabularyShard | None = None,
) -> TopKForwardKL:
    """Forward KL of each token from a teacher known on k ids; formulas and biases are at the top of this file.

    Backward computes the logits of LinearLogits again; neither pass holds more than two (chunk_tokens, V) tensors.
    Autocast, torch.compile, logits of -inf and second derivatives: as in `divergence`.

    Args:
        student: logits (tokens, V), or LinearLogits, whose hidden states, head and bias get gradients where they ask
            for them. Its temperature has to be the one at which the teacher's log-probabilities were taken.
        top_ids: (tokens, k) of an integer dtype, different ids in each row, in any order: the teacher's most likely
            ones, though any set is treated rightly.
        top_log_probs: (tokens, k) of any float dtype, over the whole vocabulary; -inf allowed. Rows whose
            probabilities sum to more than 1, by rounding in a cache, are scaled to 1. With the bucket, rounding
            moves 1 - P too: store float32 if it matters.
        tail: bucket or renormalise. With all ids known there is no tail, and both are the exact KL.
        mask: (tokens,), nonzero on tokens wanted, everywhere when None. The others are left out of every product;
            their results and gradients are zero, whatever their ids.
        vocab_size: real size of the vocabulary; ids from there on have probability zero. V when None.
        chunk_tokens: tokens worked on at a time; None for the default of `chunk_sizes`.
        shard: with logits or a head that a tensor-parallel group divides by ids: this rank's part. top_ids stay those
            of the whole vocabulary, whose vocab_size is then needed; every rank gets the same results.

    Raises:
        ValueError: shapes, dtypes or settings that make no sense together. On a CPU also an id that does not exist or
            comes twice, and "log-probabilities" that sum to well over 1; elsewhere the check would stall the device.
    """
    student = as_logits(student)
    if tail not in TAILS:
        raise ValueError(f"tail {tail!r} is none of {TAILS}")
    if shard is None:
        columns = vocab_size = shared_size(vocab_size, student.vocab_size)
    elif vocab_size is None:
        raise ValueError("vocab_size, the whole vocabulary's, is needed with a shard of it")
    else:
        columns = max(0, min(vocab_size - shard.first, student.vocab_size))
    _check_shapes(student.tokens, top_ids, top_log_probs, vocab_size)
    rows = wanted_rows(mask, student.tokens, student.device)
    ids, log_probs = (known.detach().to(student.device)[rows] for known in (top_ids, top_log_probs))
    if ids.device.type == "cpu":
        _check_values(ids, log_probs, vocab_size)
    chunk_tokens = tokens_at_a_time(chunk_tokens, student.device)
    covered = top_ids.shape[1] == vocab_size
    settings = _Settings(tail, columns, covered, chunk_tokens, shard or WholeVocabulary())
    with torch.autocast(student.device.type, enabled=False):
        return TopKForwardKL(*_TopKForwardKL.apply(student, rows, ids.long(), log_probs, settings, *student.tensors))


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
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"top_ids from {int(ids.min())} to {int(ids.max())} in a vocabulary of {vocab_size}")
    if (ids.sort(-1).values.diff(dim=-1) == 0).any():
        raise ValueError("an id comes twice among the top_ids of one token")
    log_mass = log_probs.double().logsumexp(-1).max()
    if log_mass > _LOG_MASS_SLACK:
        raise ValueError(f"top_log_probs are no log-probabilities: a token's sum to {log_mass.exp():.3g}")


class _TopKForwardKL(torch.autograd.Function):
    """apply(student, rows, ids, log_probs, settings, *tensors of student) -> three (tokens,). Saves its inputs only."""

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
    """Gradients to hidden (tokens, H), head (V, H) and bias (V,), those wanted, in the dtypes of these."""
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
    """Each chunk's slice of rows with its logits, (tokens, columns), in one buffer."""
    size = max(1, min(settings.chunk_tokens, len(rows)))
    # A shard of nothing but padding still takes part in the reductions, with one id that has no mass.
    buffer = torch.empty(size, max(1, settings.columns), dtype=student.dtype, device=student.device)
    for part in parts(len(rows), size):
        logits = buffer[: part.stop - part.start]
        yield part, student.write(rows[part], logits) if settings.columns else logits.fill_(float("-inf"))


def _compare_(
    logits: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor, settings: _Settings, *, differentiate: bool
) -> torch.Tensor:
    """(3, rows) values of TopKForwardKL; logits, (rows, ids here), become each divergence's gradient, or scratch."""
    vocabulary = settings.vocabulary
    ids = ids - vocabulary.first
    here = (ids >= 0) & (ids < logits.shape[1])
    place = torch.where(here, ids, 0)
    top = vocabulary.maximum(torch.where(here, logits.gather(1, place), float("-inf")))
    # The student's tail is summed, not taken as 1 - Q: where Q is near 1 that has no digits left. It is summed beside
    # its own maximum, and log-probabilities are counted from the row's: logits of 1e4 then lose nothing.
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
    divergence = _expectation(teacher.p, teacher.log_p - log_q).sum(-1)
    if settings.tail == "bucket":
        divergence = divergence + _expectation(teacher.tail, teacher.log_tail - log_tail)
    if differentiate:
        if settings.tail == "bucket":
            # q (P - Q) / (1 - Q) is the tail's own softmax times (1 - Q) - (1 - P). Without any tail tail_sum is 0,
            # otherwise at least 1.
            tail.mul_(((log_tail.exp() - teacher.tail) / tail_sum.clamp(min=1)).unsqueeze(-1))
        else:
            tail.zero_()
        tail.scatter_add_(1, place, torch.where(here, log_q.exp() - teacher.p, 0.0))
    # Rounding alone can take a divergence below zero.
    return torch.stack((divergence.clamp(min=0), log_mass.exp(), teacher.mass))


class _Teacher(NamedTuple):
    """Probabilities of the known ids, (rows, k), of sum 1 where no tail is to be; their mass P and 1 - P, (rows,)."""

    p: torch.Tensor
    log_p: torch.Tensor
    mass: torch.Tensor
    tail: torch.Tensor
    log_tail: torch.Tensor

    @staticmethod
    def of(log_probs: torch.Tensor, settings: _Settings, dtype: torch.dtype) -> _Teacher:
        # Only k numbers a token: in float64 1 - P is as exact as the log-probabilities are.
        log_p = log_probs.double()
        log_mass = log_p.logsumexp(-1)
        whole = settings.covered or settings.tail == "renormalise"
        log_p = log_p - (log_mass if whole else log_mass.clamp(min=0)).unsqueeze(-1)
        log_mass = log_mass.clamp(max=0)
        tail = torch.zeros_like(log_mass) if settings.covered else -log_mass.expm1()
        return _Teacher(*(part.to(dtype) for part in (log_p.exp(), log_p, log_mass.exp(), tail, tail.log())))


def _expectation(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """probabilities * values, where 0 times anything is 0."""
    return torch.where(probabilities == 0, 0.0, probabilities * values)
