"""Forward KL from a top-k teacher against its definition in float64, the exact KL, and finite differences."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.top_k import TAILS, TopKForwardKL, top_k_forward_kl
from verl_s2d.objectives.vocabulary import VocabularyShard

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(st.integers(0, 9), st.integers(2, 40), st.floats(0, 1), SEEDS)


def normal(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def known(teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's k most likely ids and their log-probabilities, of logits."""
    log_probs, ids = teacher.log_softmax(-1).topk(k, dim=-1)
    return ids.int(), log_probs


def exact(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_s, log_t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def definition(student: torch.Tensor, ids: torch.Tensor, log_p: torch.Tensor, tail: str) -> torch.Tensor:
    """The formulas as they are written, in float64."""
    log_p, q = log_p.double(), student.double().softmax(-1).gather(1, ids.long())
    p, mass_p, mass_q = log_p.exp(), log_p.exp().sum(-1), q.sum(-1)
    if tail == "renormalise":
        share = p / mass_p[:, None]
        return (share * (share / (q / mass_q[:, None])).log()).sum(-1)
    outside = torch.where(mass_p < 1 - 1e-14, (1 - mass_p) * ((1 - mass_p) / (1 - mass_q)).log(), 0.0)
    return (p * (log_p - q.log())).sum(-1) + (outside if ids.shape[1] < student.shape[1] else 0)


def problem(shape, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, int]:
    tokens, vocabulary, share, seed = shape
    student, teacher = (normal(tokens, vocabulary, seed=seed + n, scale=scale) for n in range(2))
    return student, teacher, 1 + int(share * (vocabulary - 1))


def linear(tokens: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float64, **more) -> LinearLogits:
    leaves = [normal(*shape, seed=seed + n) for n, shape in enumerate([(tokens, 4), (vocabulary, 4), (vocabulary,)])]
    return LinearLogits(*(leaf.to(dtype).requires_grad_() for leaf in leaves), **more)


def materialised(logits: LinearLogits) -> torch.Tensor:
    z = logits.hidden.double() @ logits.head.double().T + logits.bias.double()
    if logits.softcap is not None:
        z = logits.softcap * torch.tanh(z / logits.softcap)
    return z / logits.temperature


@settings(deadline=None, max_examples=80)
@given(SHAPES, st.sampled_from(TAILS), st.integers(1, 12))
def test_value_masses_and_gradient_equal_the_definition_at_any_chunk_size(shape, tail, chunk):
    student, teacher, k = problem(shape)
    student.requires_grad_()
    ids, log_p = known(teacher, k)
    result = top_k_forward_kl(student, ids, log_p, tail=tail, chunk_tokens=chunk)
    expected = definition(student, ids, log_p, tail)
    torch.testing.assert_close(result.divergence, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(result.teacher_mass, log_p.exp().sum(-1))
    torch.testing.assert_close(result.student_mass, student.softmax(-1).gather(1, ids.long()).sum(-1))
    upstream = normal(len(student), seed=shape[-1] + 5)
    ours, reference = (torch.autograd.grad((d * upstream).sum(), student)[0] for d in (result.divergence, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    SHAPES, st.sampled_from(TAILS), st.integers(1, 12), st.sampled_from([None, 5.0]), st.sampled_from([1.0, 0.7]), SEEDS
)
def test_linear_gradients_equal_those_of_the_logits_for_any_upstream_and_mask(
    shape, tail, chunk, softcap, temperature, seed
):
    tokens, vocabulary, share, _ = shape
    student = linear(tokens, vocabulary, seed, softcap=softcap, temperature=temperature)
    ids, log_p = known(normal(tokens, vocabulary, seed=seed + 9, scale=2), 1 + int(share * (vocabulary - 1)))
    mask = normal(tokens, seed=seed + 8) > -0.5
    upstream = normal(tokens, seed=seed + 7)
    ours = top_k_forward_kl(student, ids, log_p, tail=tail, mask=mask, chunk_tokens=chunk).divergence
    expected = torch.where(mask, definition(materialised(student), ids, log_p, tail), 0.0)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    pairs = (torch.autograd.grad((d * upstream).sum(), student.tensors) for d in (ours, expected))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("vocab_size", [6, 3])
def test_finite_differences(tail, vocab_size):
    student = linear(3, 7, 0, softcap=3.0)
    ids, log_p = known(normal(3, vocab_size, seed=4), 3)

    def loss(hidden, head, bias):
        parts = replace(student, hidden=hidden, head=head, bias=bias)
        result = top_k_forward_kl(parts, ids, log_p, tail=tail, vocab_size=vocab_size)
        return result.divergence * torch.tensor([1.0, 0.0, -2.0])

    assert torch.autograd.gradcheck(loss, student.tensors, atol=1e-7, rtol=1e-5, nondet_tol=1e-12)


def test_the_gradient_is_the_one_written_in_the_module():
    student, teacher = normal(1, 9, seed=0).requires_grad_(), normal(1, 9, seed=1)
    ids, log_p = known(teacher, 3)
    top_k_forward_kl(student, ids, log_p, tail="bucket").divergence.sum().backward()
    q, p = student.detach().softmax(-1), torch.zeros(1, 9).double().scatter(1, ids.long(), log_p.exp())
    here = p > 0
    mass_q, mass_p = q[here].sum(), p.sum()
    torch.testing.assert_close(student.grad, torch.where(here, q - p, q * (mass_p - mass_q) / (1 - mass_q)))


@settings(deadline=None, max_examples=80)
@given(SHAPES)
def test_bucket_lies_between_nothing_and_the_exact_kl_and_the_chain_rule_holds(shape):
    student, teacher, k = problem(shape)
    ids, log_p = known(teacher, k)
    bucket, q, p = top_k_forward_kl(student, ids, log_p, tail="bucket")
    whole = exact(student, teacher)
    assert (bucket >= 0).all() and (bucket <= whole + 1e-9).all()
    if k < student.shape[1]:
        between = torch.where(p < 1 - 1e-12, p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(), p * (p / q).log())
        inside = top_k_forward_kl(student, ids, log_p, tail="renormalise").divergence
        torch.testing.assert_close(bucket, between + p * inside, rtol=1e-7, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(TAILS), st.sampled_from([torch.float32, torch.float64]))
def test_with_every_id_known_it_is_the_exact_kl(shape, tail, dtype):
    student, teacher, _ = problem(shape)
    ids, log_p = known(teacher.to(dtype), student.shape[1])
    ours = student.to(dtype).requires_grad_()
    result = top_k_forward_kl(ours, ids, log_p, tail=tail)
    reference = student.to(dtype).requires_grad_()
    expected = divergence(reference, teacher.to(dtype)).divergence
    torch.testing.assert_close(result.divergence, expected, rtol=1e-5, atol=1e-5)
    result.divergence.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.student_mass, torch.ones_like(result.student_mass))
    # A cache of few digits is a distribution all the same.
    rough = top_k_forward_kl(teacher, ids, log_p - 0.01, tail=tail).divergence
    assert (rough < 1e-6).all()
    torch.testing.assert_close(
        top_k_forward_kl(student, ids, log_p - 0.01, tail=tail).divergence,
        result.divergence.double().detach(),
        rtol=1e-5,
        atol=1e-5,
    )


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_zero_exactly_where_what_is_known_agrees(shape):
    student, teacher, k = problem(shape)
    ids, log_p = known(teacher, k)
    # The same probabilities on the known ids and the same mass outside, in another shape.
    shuffled = teacher.clone()
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(1, ids.long(), False)
    shuffled[outside] = teacher[outside].reshape(len(teacher), student.shape[1] - k).flip(-1).flatten()
    # Right proportions on the known ids, any mass outside.
    scaled = torch.where(outside, student, teacher + 1)
    assert (top_k_forward_kl(shuffled, ids, log_p, tail="bucket").divergence < 1e-12).all()
    for near in (shuffled, scaled):
        assert (top_k_forward_kl(near, ids, log_p, tail="renormalise").divergence < 1e-12).all()
    rounded = top_k_forward_kl(shuffled.float(), ids, log_p.float(), tail="bucket").divergence
    assert (rounded >= 0).all() and (rounded < 1e-5).all()
    moved = teacher.clone()
    moved.scatter_add_(1, ids[:, :1].long(), torch.ones(len(teacher), 1).double())
    assert (top_k_forward_kl(moved, ids, log_p, tail="bucket").divergence > 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(TAILS), st.floats(-1e4, 1e4))
def test_blind_to_shifts_of_the_logits_and_to_the_order_of_ids(shape, tail, shift):
    student, teacher, k = problem(shape)
    ids, log_p = known(teacher, k)
    value = top_k_forward_kl(student, ids, log_p, tail=tail).divergence
    order = torch.randperm(k, generator=torch.Generator().manual_seed(shape[-1]))
    result = top_k_forward_kl(student + shift, ids[:, order], log_p[:, order], tail=tail).divergence
    torch.testing.assert_close(result, value, rtol=1e-8, atol=1e-8)
    result = top_k_forward_kl(student.flip(-1), student.shape[1] - 1 - ids, log_p, tail=tail).divergence
    torch.testing.assert_close(result, value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("as_linear", [False, True])
def test_masked_tokens_are_never_looked_at(tail, as_linear):
    mask = torch.tensor([1, 0, 2, 0, 1])
    student = linear(5, 11, 0)
    ids, log_p = known(normal(5, 11, seed=5), 4)
    expected = definition(materialised(student)[mask != 0], ids[mask != 0], log_p[mask != 0], tail)
    student.hidden.data[mask == 0] = math.nan
    ids[mask == 0], log_p[mask == 0] = 99, math.nan
    source = student if as_linear else materialised(student).detach().requires_grad_()
    result = top_k_forward_kl(source, ids, log_p, tail=tail, mask=mask)
    torch.testing.assert_close(result.divergence[mask != 0], expected.detach())
    assert all((values[mask == 0] == 0).all() for values in result)
    result.divergence.sum().backward()
    for leaf in source.tensors if as_linear else (source,):
        assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0
    assert ((student.hidden if as_linear else source).grad[mask == 0] == 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_no_token_is_an_empty_result_with_zero_gradients(tail):
    student = linear(3, 7, 0, torch.float32)
    ids, log_p = known(normal(3, 7, seed=5), 2)
    result = top_k_forward_kl(student, ids, log_p, tail=tail, mask=torch.zeros(3))
    result.divergence.sum().backward()
    assert (result.divergence == 0).all() and all((leaf.grad == 0).all() for leaf in student.tensors)
    empty = replace(student, hidden=torch.zeros(0, 4))
    assert top_k_forward_kl(empty, ids[:0], log_p[:0], tail=tail).divergence.shape == (0,)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_keep_value_and_gradient(tail, extreme):
    student = torch.zeros(3, 6)
    student[0, 0] = student[1, 1] = student[2, 5] = extreme
    teacher = torch.zeros(3, 6)
    teacher[:, :3] = torch.tensor([3.0, 2.0, 1.0])
    ids, log_p = known(teacher, 3)
    student.requires_grad_()
    result = top_k_forward_kl(student, ids, log_p, tail=tail)
    result.divergence.sum().backward()
    assert all(torch.isfinite(part).all() for part in result) and torch.isfinite(student.grad).all()
    # float64 loses 1 - Q as well, so the tail's mass is summed here too.
    log_q = student.detach().double().log_softmax(-1)
    p = log_p.double().exp()
    if tail == "bucket":
        tail_p = 1 - p.sum(-1)
        expected = (p * (log_p - log_q[:, :3])).sum(-1) + tail_p * (tail_p.log() - log_q[:, 3:].logsumexp(-1))
    else:
        expected = (p * (p.log() - log_q[:, :3])).sum(-1) / p.sum(-1)
        expected = expected - p.sum(-1).log() + log_q[:, :3].logsumexp(-1)
    torch.testing.assert_close(result.divergence.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_tail_too_small_for_one_minus_the_mass_is_still_right():
    # 1 - Q is 0 in float32, and 1 - P is known better than float32 could sum it.
    student, teacher = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[10.0, 0.0, 0.0]])
    log_p = teacher.double().log_softmax(-1)[:, :1]
    result = top_k_forward_kl(student, torch.zeros(1, 1).long(), log_p, tail="bucket").divergence.double()
    expected = definition(student, torch.zeros(1, 1).long(), log_p, "bucket")
    assert expected.item() > 5e-4
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=0)


def test_a_teacher_that_is_certain_has_no_tail():
    student = torch.tensor([[1.0, 0.0, -1.0, 0.5]], requires_grad=True)
    for log_p in (torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.02, -math.inf]])):
        result = top_k_forward_kl(student, torch.tensor([[2, 0]]), log_p, tail="bucket")
        assert result.teacher_mass == 1
        torch.testing.assert_close(result.divergence, -student.log_softmax(-1)[:, 2])
        (gradient,) = torch.autograd.grad(result.divergence, student)
        torch.testing.assert_close(gradient, student.softmax(-1).detach() - torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


def test_impossible_and_broken_logits_are_not_hidden():
    ids, log_p = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log()
    for logits, value in {
        # Impossible outside although the teacher goes there; impossible where the teacher goes; not a number.
        (0.0, 0.0, -math.inf, -math.inf): math.inf,
        (0.0, -math.inf, 0.0, 0.0): math.inf,
        (0.0, 0.0, math.nan, 0.0): math.nan,
        (math.nan, 0.0, 0.0, 0.0): math.nan,
    }.items():
        result = top_k_forward_kl(torch.tensor([logits]), ids, log_p, tail="bucket").divergence.item()
        assert result == value or (math.isnan(result) and math.isnan(value))
    padded = torch.tensor([[1.0, 0.0, 0.0, 50.0, math.nan]], requires_grad=True)
    whole = top_k_forward_kl(padded[:, :3].detach(), ids, log_p, tail="bucket").divergence
    result = top_k_forward_kl(padded, ids, log_p, tail="bucket", vocab_size=3).divergence
    torch.testing.assert_close(result, whole)
    result.sum().backward()
    assert (padded.grad[:, 3:] == 0).all() and padded.grad.abs().sum() > 0


@pytest.mark.parametrize("tail", TAILS)
def test_two_backward_passes_and_frozen_parts(tail):
    student = linear(5, 9, 0)
    ids, log_p = known(normal(5, 9, seed=5), 3)
    loss = (top_k_forward_kl(student, ids, log_p, tail=tail).divergence * torch.linspace(-1, 2, 5)).sum()
    first = torch.autograd.grad(loss, student.tensors, retain_graph=True)
    second = torch.autograd.grad(loss, student.tensors)
    assert all((a == b).all() and a.abs().sum() > 0 for a, b in zip(first, second, strict=True))
    for place, leaf in enumerate(student.tensors):
        only = LinearLogits(*(t if n == place else t.detach() for n, t in enumerate(student.tensors)))
        result = top_k_forward_kl(only, ids, log_p, tail=tail)
        assert not result.student_mass.requires_grad and not result.teacher_mass.requires_grad
        (alone,) = torch.autograd.grad((result.divergence * torch.linspace(-1, 2, 5)).sum(), [leaf])
        torch.testing.assert_close(alone, first[place])


@pytest.mark.parametrize("tail", TAILS)
def test_bfloat16_inputs_are_multiplied_into_float32(tail):
    student = linear(16, 300, 0, torch.bfloat16)
    ids, log_p = known(normal(16, 300, seed=5, scale=3), 20)
    log_p = log_p.float()
    result = top_k_forward_kl(student, ids, log_p, tail=tail).divergence
    twin = LinearLogits(*(t.detach().double().requires_grad_() for t in student.tensors))
    expected = definition(materialised(twin), ids, log_p, tail)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = (torch.autograd.grad(d.sum(), s.tensors) for d, s in ((result, student), (expected, twin)))
    for ours, reference in zip(*pairs, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - reference).norm() / reference.norm() < 3e-3


class TwoThreads(VocabularyShard):
    """A group of two ranks that are threads of this process."""

    def __init__(self, meeting: threading.Barrier, board: dict, first: int):
        self.meeting, self.board, self.first = meeting, board, first

    def _exchange(self, values: torch.Tensor) -> torch.Tensor:
        self.board[self.first] = values.clone()
        self.meeting.wait()
        both = torch.stack([self.board[first] for first in sorted(self.board)])
        self.meeting.wait()
        return both

    def maximum(self, values):
        return values.copy_(self._exchange(values).amax(0))

    def total(self, values):
        return values.copy_(self._exchange(values).sum(0))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("as_linear", [False, True])
# The second shard holds a part of the ids, one of them, or nothing but padding.
@pytest.mark.parametrize("size", [6, 10, 11])
def test_a_vocabulary_in_two_parts_gives_the_same(tail, as_linear, size):
    student = linear(5, 14, 0)
    ids, log_p = known(normal(5, 11, seed=5, scale=2), 4)
    upstream = torch.linspace(-1, 2, 5).double()
    source = student if as_linear else materialised(student).detach().requires_grad_()
    whole = top_k_forward_kl(source, ids, log_p, tail=tail, vocab_size=11)
    leaves = student.tensors if as_linear else (source,)
    expected = torch.autograd.grad((whole.divergence * upstream).sum(), leaves)
    meeting, board, found = threading.Barrier(2, timeout=60), {}, {}

    def rank(first: int, end: int) -> None:
        if as_linear:
            tensors = (student.hidden, student.head[first:end], student.bias[first:end])
        else:
            tensors = (source[:, first:end],)
        tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        part = LinearLogits(*tensors) if as_linear else tensors[0]
        shard = TwoThreads(meeting, board, first)
        result = top_k_forward_kl(part, ids, log_p, tail=tail, vocab_size=11, shard=shard, chunk_tokens=2)
        found[first] = result, torch.autograd.grad((result.divergence * upstream).sum(), tensors)

    threads = [threading.Thread(target=rank, args=ends) for ends in ((0, size), (size, 14))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, gradients in found.values():
        for a, b in zip(result, whole, strict=True):
            torch.testing.assert_close(a, b)
        if as_linear:
            torch.testing.assert_close(gradients[0], expected[0])
    together = [torch.cat(parts, 0 if as_linear else 1) for parts in zip(found[0][1], found[size][1], strict=True)]
    for a, b in zip(together[as_linear:], expected[as_linear:], strict=True):
        torch.testing.assert_close(a, b)


def test_what_makes_no_sense_is_refused():
    logits, ids, log_p = torch.zeros(2, 5), torch.tensor([[0, 1], [3, 4]]), torch.full((2, 2), -1.0)

    def call(student=logits, ids=ids, log_p=log_p, tail="bucket", **more) -> TopKForwardKL:
        return top_k_forward_kl(student, ids, log_p, tail=tail, **more)

    call()
    for message, wrong in {
        "tail 'drop'": {"tail": "drop"},
        r"are not \(tokens, k\) of 3": {"student": torch.zeros(3, 5)},
        r"are not \(tokens, k\) of 2": {"log_p": log_p[:, :1]},
        "integers and floats": {"ids": ids.float()},
        "0 ids a token": {"ids": ids[:, :0], "log_p": log_p[:, :0]},
        "6 ids a token": {"ids": torch.zeros(2, 6).long(), "log_p": torch.full((2, 6), -3.0)},
        "top_ids from 0 to 4 in a vocabulary of 4": {"vocab_size": 4},
        "top_ids from -1": {"ids": ids - 1},
        "comes twice": {"ids": torch.tensor([[0, 1], [4, 4]])},
        "no log-probabilities": {"log_p": torch.zeros(2, 2)},
        "mask of shape": {"mask": torch.ones(3)},
        "vocab_size 6": {"vocab_size": 6},
        "chunk_tokens 0": {"chunk_tokens": 0},
        "vocab_size, the whole": {"shard": VocabularyShard(None, 0)},
    }.items():
        with pytest.raises(ValueError, match=message):
            call(**wrong)
