"""Exact full-vocabulary divergence of a student from a teacher, per token, without the logits ever existing as a whole.

Stages 2a (forward KL on teacher rollouts) and 2b (reverse KL on student rollouts) of arXiv 2605.12483; formulas in
`comparison`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from verl_s2d.objectives.chunked_pass import Settings
from verl_s2d.objectives.chunks import as_logits, shared_size, tokens_at_a_time, wanted_rows
from verl_s2d.objectives.differentiable import GivenDivergence, LinearDivergence
from verl_s2d.objectives.divergence_kernel import OBJECTIVES
from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits
from verl_s2d.objectives.vocabulary import VocabularyShard, WholeVocabulary


class Divergence(NamedTuple):
    """Per-token results, each (tokens,), float32 or of float64 inputs float64; zero where the mask is.

    `divergence`, `student_entropy` and `student_log_prob` carry gradients to the student, the last two at the price of
    another pass over the tokens; nothing carries one to the teacher.

    Attributes:
        divergence: the objective's value, nats.
        student_entropy, teacher_entropy: nats.
        top1_agreement: 1 where both put the most mass on the same id, or on the same one of several.
        student_log_prob, teacher_log_prob: of the sampled id; NaN everywhere when no ids were given.
    """

    divergence: torch.Tensor
    student_entropy: torch.Tensor
    teacher_entropy: torch.Tensor
    top1_agreement: torch.Tensor
    student_log_prob: torch.Tensor
    teacher_log_prob: torch.Tensor


@torch.compiler.disable
def divergence(
    student: torch.Tensor | LinearLogits | GivenLogits,
    teacher: torch.Tensor | LinearLogits | GivenLogits | ComposedLogits,
    *,
    objective: str = "forward_kl",
    beta: float = 0.5,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    sampled_ids: torch.Tensor | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    compiled: bool = False,
    shard: VocabularyShard | None = None,
) -> Divergence:
    """Divergence of each token's two next-token distributions over the full vocabulary.

    With `LinearLogits` neither forward nor backward holds more than two (chunk_tokens, V) tensors and a block of
    scratch, whatever the number of tokens. Inputs are taken in their own dtypes, whatever autocast the caller has on:
    low-precision ones are multiplied into float32. Under torch.compile the call is left out of the caller's graph.

    Logits of -inf rule an id out. The forward KL is infinite where the teacher gives mass to an id that the student
    rules out; its gradient stays p_S - p_T. The reverse KL is infinite where the student gives mass to an id that the
    teacher rules out, and has no gradient there: NaN where p_S is not 0. NaN logits, or a side without ids, give NaN.

    There is no second derivative: a gradient penalty raises.

    Args:
        student: logits (tokens, V_s), or LinearLogits, whose hidden states, head and bias get gradients where they
            ask for them (a frozen head costs nothing). Batches of sequences are to be flattened to (tokens, ...).
        teacher: logits (tokens, V_t), LinearLogits, or several of these as ComposedLogits; constant.
        objective: forward_kl, reverse_kl or jsd.
        beta: of jsd, between 0 and 1: 0 tends to beta * forward KL, 1 to (1 - beta) * reverse KL.
        mask: (tokens,), nonzero on tokens wanted. The others are left out of every product; their results and
            gradients are zero. Where weights are nonzero when None, everywhere when both are.
        weights: (tokens,), what each token's divergence will be multiplied with in the loss, up to one constant:
            mask times token weight over the number of tokens, say. Gradients are then made in the forward pass, with
            no second computation of the logits. A hint only: gradients are exact for whatever comes back, tokens
            whose gradient differs from the hint are computed again. Only LinearLogits profit, and not under no_grad.
        sampled_ids: (tokens,) int64, ids whose log-probabilities to return.
        vocab_size: real size of the shared vocabulary; ids from there on have probability zero on both sides.
            min(V_s, V_t) when None.
        chunk_tokens: tokens worked on at a time; None for the default of `chunk_sizes`.
        compiled: use torch.compile for the elementwise work, not where a shard is given. The first call then takes
            seconds, the others less: see benchmarks/RESULTS.md.
        shard: with logits or heads that a tensor-parallel group divides by ids: this rank's part. V_s and V_t are the
            sizes held here, and vocab_size, the whole vocabulary's, is then needed; everything else, hidden states
            too, is whole and the same on every rank. So are the results and the hidden states' gradients, which are
            summed over the group here and must not be again; heads and logits get their own part's.

    Raises:
        ValueError: shapes, objective, beta, vocab_size or chunk_tokens that make no sense together; shards that do
            not hold each id once, or ranks that differ in their number of tokens, on every rank.
    """
    student, teacher = as_logits(student), as_logits(teacher)
    _check(student, teacher, objective, beta, vocab_size, shard)
    for name, given in (("weights", weights), ("sampled_ids", sampled_ids)):
        if given is not None and given.shape != (student.tokens,):
            raise ValueError(f"{name} of shape {tuple(given.shape)} for {student.tokens} tokens")
    if mask is None and weights is not None:
        mask = weights != 0
    rows = wanted_rows(mask, student.tokens, student.device)
    masked = student.masks_ids or teacher.masks_ids
    if shard is None:
        columns, exchange = shared_size(vocab_size, min(student.vocab_size, teacher.vocab_size)), None
    else:
        sizes = (student.vocab_size, teacher.vocab_size, vocab_size)
        columns, exchange, masked = shard.divide(len(rows), *sizes, masked, student.device)
    chunk_tokens = tokens_at_a_time(chunk_tokens, student.device)
    compiled = compiled and shard is None  # a collective in the middle leaves little to fuse
    vocabulary = shard or WholeVocabulary()
    settings = Settings(objective, beta, columns, masked, chunk_tokens, vocabulary, exchange, compiled)
    ids = None if sampled_ids is None else sampled_ids.to(student.device)[rows].long()
    hint = None
    if weights is not None and torch.is_grad_enabled():
        hint = weights.detach().to(student.device)[rows].to(student.dtype)
    frozen = [None if tensor is None else tensor.detach() for tensor in teacher.tensors]
    function = LinearDivergence if isinstance(student, LinearLogits) else GivenDivergence
    with torch.autocast(student.device.type, enabled=False):
        return Divergence(*function.apply(student, teacher, rows, ids, hint, settings, *student.tensors, *frozen))


def _check(student, teacher, objective, beta, vocab_size, shard) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is none of {OBJECTIVES}")
    if objective == "jsd" and not 0 < beta < 1:
        raise ValueError(f"beta {beta} of jsd is not between 0 and 1; at the ends use reverse_kl or forward_kl")
    if isinstance(student, ComposedLogits):
        raise ValueError("composed logits have no gradient, so they are a teacher's only")
    if student.tokens != teacher.tokens:
        raise ValueError(f"student has {student.tokens} tokens, teacher {teacher.tokens}")
    if shard is not None and vocab_size is None:
        raise ValueError("vocab_size, the whole vocabulary's, is needed with a shard of it")
    if shard is not None and vocab_size < 1:
        raise ValueError(f"vocab_size {vocab_size} is not positive")
