"""Compute the exact full-vocabulary divergence of student and teacher per token, never holding all logits at once.

Stages 2a (forward KL on teacher rollouts) and 2b (reverse KL on student rollouts) of arXiv 2605.12483; formulas in
`divergence_kernel`.
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
    """Per-token results, each (tokens,): float64 for float64 inputs, else float32; zero where the mask is zero.

    `divergence`, `student_entropy` and `student_log_prob` are differentiable with respect to the student; the last two
    cost another pass over the tokens each. The teacher gets no gradient.

    Attributes:
        divergence: the objective's value, nats.
        student_entropy, teacher_entropy: nats.
        top1_agreement: 1 where some id is most likely for both models, ties included.
        student_log_prob, teacher_log_prob: log-probability of the sampled id; NaN everywhere without sampled_ids.
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
    """Compute the divergence of each token's two next-token distributions over the full vocabulary.

    With `LinearLogits` neither forward nor backward holds more than two (chunk_tokens, V) tensors and a scratch block,
    for any number of tokens. Inputs keep their own dtypes, also under the caller's autocast; low-precision products
    accumulate in float32. Under torch.compile the call is excluded from the caller's graph.

    A logit of -inf gives its id probability zero. The forward KL is infinite where the student excludes an id that the
    teacher does not; its gradient stays p_S - p_T. The reverse KL is infinite where the teacher excludes an id that the
    student does not; its gradient is NaN wherever p_S > 0. NaN logits, or a side that excludes every id, give NaN.

    There is no second derivative: a gradient penalty raises.

    Args:
        student: logits (tokens, V_s), or LinearLogits, whose hidden states, head and bias get gradients where they
            require them (a frozen head costs nothing). Flatten batches of sequences to (tokens, ...).
        teacher: logits (tokens, V_t), LinearLogits, or several of these as ComposedLogits; constant.
        objective: forward_kl, reverse_kl or jsd.
        beta: of jsd, strictly between 0 and 1. The value tends to beta * forward KL as beta -> 0 and to
            (1 - beta) * reverse KL as beta -> 1.
        mask: (tokens,), nonzero on the tokens to compare. The others are left out of every product; their results and
            gradients are zero. When None: the tokens with nonzero weights, or all tokens without weights.
        weights: (tokens,), the factor of each token's divergence in the loss, up to one common constant; for example
            mask times token weight over the number of tokens. Gradients are then computed in the forward pass, and the
            logits only once. This is a hint: gradients are exact for any upstream gradient, and tokens whose upstream
            gradient differs from the hint are recomputed. It helps LinearLogits only, and not under no_grad.
        sampled_ids: (tokens,) int64, ids whose log-probabilities to return.
        vocab_size: real size of the shared vocabulary; ids at or above it have probability zero on both sides.
            min(V_s, V_t) when None.
        chunk_tokens: tokens per chunk; None for the default of `chunk_sizes`.
        compiled: use torch.compile for the elementwise work; ignored with a shard. Compiling takes seconds in the
            first call; times of later calls are in benchmarks/RESULTS.md.
        shard: this rank's range of ids, when a tensor-parallel group shards logits or heads by id. V_s and V_t are then
            the sizes on this rank, and vocab_size, of the whole vocabulary, is required. All other inputs, hidden
            states included, are replicated. So are the results and the gradients of hidden states, which are already
            summed over the group; heads and logits get the gradient of their own shard.

    Raises:
        ValueError: shapes, objective, beta, vocab_size or chunk_tokens do not fit together. With a shard, on every
            rank: the shards do not hold each id exactly once, or ranks have different numbers of tokens.
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
    compiled = compiled and shard is None  # a collective inside leaves little to fuse
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
        raise ValueError("composed logits have no gradient: they can be a teacher's only")
    if student.tokens != teacher.tokens:
        raise ValueError(f"student has {student.tokens} tokens, teacher {teacher.tokens}")
    if shard is not None and vocab_size is None:
        raise ValueError("a shard needs vocab_size, the whole vocabulary's size")
    if shard is not None and vocab_size < 1:
        raise ValueError(f"vocab_size {vocab_size} is not positive")
