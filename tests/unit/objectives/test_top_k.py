"""The KLs from a top-k teacher against its definition in float64, the exact KL, and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.top_k_reference import SEEDS, SHAPES, definition, exact, known, linear, materialised, normal, problem
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.top_k import OBJECTIVES, TAILS, TopKDivergence, top_k_divergence
from verl_s2d.objectives.vocabulary import VocabularyShard


@settings(deadline=None, max_examples=80)
@given(SHAPES, st.sampled_from(OBJECTIVES), st.sampled_from(TAILS), st.integers(1, 12))
def test_value_masses_and_gradient_equal_the_definition_at_any_chunk_size(shape, objective, tail, chunk):
    student, teacher, k = problem(shape)
    student.requires_grad_()
    ids, log_p = known(teacher, k)
    result = top_k_divergence(student, ids, log_p, objective=objective, tail=tail, chunk_tokens=chunk)
    expected = definition(student, ids, log_p, tail, objective)
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
    ours = top_k_divergence(student, ids, log_p, tail=tail, mask=mask, chunk_tokens=chunk).divergence
    expected = torch.where(mask, definition(materialised(student), ids, log_p, tail), 0.0)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    pairs = (torch.autograd.grad((d * upstream).sum(), student.tensors) for d in (ours, expected))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("vocab_size", [6, 3])
def test_finite_differences(objective, tail, vocab_size):
    student = linear(3, 7, 0, softcap=3.0)
    ids, log_p = known(normal(3, vocab_size, seed=4), 3)

    def loss(hidden, head, bias):
        parts = replace(student, hidden=hidden, head=head, bias=bias)
        result = top_k_divergence(parts, ids, log_p, objective=objective, tail=tail, vocab_size=vocab_size)
        return result.divergence * torch.tensor([1.0, 0.0, -2.0])

    assert torch.autograd.gradcheck(loss, student.tensors, atol=1e-7, rtol=1e-5, nondet_tol=1e-12)


def test_the_gradient_is_the_one_written_in_the_module():
    student, teacher = normal(1, 9, seed=0).requires_grad_(), normal(1, 9, seed=1)
    ids, log_p = known(teacher, 3)
    top_k_divergence(student, ids, log_p, tail="bucket").divergence.sum().backward()
    q, p = student.detach().softmax(-1), torch.zeros(1, 9).double().scatter(1, ids.long(), log_p.exp())
    here = p > 0
    mass_q, mass_p = q[here].sum(), p.sum()
    torch.testing.assert_close(student.grad, torch.where(here, q - p, q * (mass_p - mass_q) / (1 - mass_q)))


@settings(deadline=None, max_examples=80)
@given(SHAPES)
def test_bucket_lies_between_nothing_and_the_exact_kl_and_the_chain_rule_holds(shape):
    student, teacher, k = problem(shape)
    ids, log_p = known(teacher, k)
    bucket, q, p = top_k_divergence(student, ids, log_p, tail="bucket")
    whole = exact(student, teacher)
    assert (bucket >= 0).all() and (bucket <= whole + 1e-9).all()
    if k < student.shape[1]:
        between = torch.where(p < 1 - 1e-12, p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(), p * (p / q).log())
        inside = top_k_divergence(student, ids, log_p, tail="renormalise").divergence
        torch.testing.assert_close(bucket, between + p * inside, rtol=1e-7, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(OBJECTIVES), st.sampled_from(TAILS), st.sampled_from([torch.float32, torch.float64]))
def test_with_every_id_known_it_is_the_exact_kl(shape, objective, tail, dtype):
    student, teacher, _ = problem(shape)
    ids, log_p = known(teacher.to(dtype), student.shape[1])
    ours = student.to(dtype).requires_grad_()
    result = top_k_divergence(ours, ids, log_p, objective=objective, tail=tail)
    reference = student.to(dtype).requires_grad_()
    expected = divergence(reference, teacher.to(dtype), objective=objective).divergence
    torch.testing.assert_close(result.divergence, expected, rtol=1e-5, atol=1e-5)
    result.divergence.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.student_mass, torch.ones_like(result.student_mass))
    # A cache of few digits is a distribution all the same.
    rough = top_k_divergence(teacher, ids, log_p - 0.01, objective=objective, tail=tail).divergence
    assert (rough < 1e-6).all()
    torch.testing.assert_close(
        top_k_divergence(student, ids, log_p - 0.01, objective=objective, tail=tail).divergence,
        result.divergence.double().detach(),
        rtol=1e-5,
        atol=1e-5,
    )


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from(OBJECTIVES))
def test_the_bucket_is_the_exact_kl_of_merged_distributions_whose_parts_sum_to_one(shape, objective):
    student, teacher, k = problem(shape)
    ids, log_p = known(teacher, k)
    inside = torch.zeros_like(student, dtype=torch.bool).scatter(1, ids.long(), True)

    def merged(logits: torch.Tensor) -> torch.Tensor:
        """log-probs of K and of the bucket: k + 1 outcomes."""
        log_probs = logits.double().log_softmax(-1)
        rest = log_probs.masked_fill(inside, -torch.inf).logsumexp(-1)
        return torch.cat([log_probs.gather(1, ids.long()), rest[:, None]], 1)

    of_student, of_teacher = merged(student), merged(teacher)
    for log_probs in (of_student, of_teacher):
        torch.testing.assert_close(log_probs.logsumexp(-1).exp(), torch.ones(len(student)).double())
    columns = k + (k < student.shape[1])
    expected = divergence(of_student[:, :columns], of_teacher[:, :columns], objective=objective).divergence
    result = top_k_divergence(student, ids, log_p, objective=objective)
    torch.testing.assert_close(result.divergence, expected, rtol=1e-6, atol=1e-9)
    assert (result.divergence <= divergence(student, teacher, objective=objective).divergence + 1e-9).all()


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_the_sum_over_known_ids_alone_is_biased_by_the_gradient_of_their_mass(shape):
    """Many Faces of OPD: sum_K q (log q - log p) has the bucket's gradient plus (1 + log((1 - Q) / (1 - P))) dQ."""
    student, teacher, k = problem(shape)
    if k == student.shape[1]:
        return
    ids, log_p = known(teacher, k)

    def gradient(of) -> torch.Tensor:
        leaf = student.clone().requires_grad_()
        return torch.autograd.grad(of(leaf).sum(), leaf)[0]

    def inside(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(1, ids.long())

    without = gradient(lambda z: (inside(z).exp() * (inside(z) - log_p)).sum(-1))
    of_mass = gradient(lambda z: inside(z).exp().sum(-1))
    bucket = gradient(lambda z: top_k_divergence(z, ids, log_p, objective="reverse_kl").divergence)
    rests = [1 - log_probs.exp().sum(-1, keepdim=True) for log_probs in (inside(student), log_p)]
    torch.testing.assert_close(without, bucket + (1 + (rests[0] / rests[1]).log()) * of_mass, rtol=1e-6, atol=1e-8)


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
    assert (top_k_divergence(shuffled, ids, log_p, tail="bucket").divergence < 1e-12).all()
    for near in (shuffled, scaled):
        assert (top_k_divergence(near, ids, log_p, tail="renormalise").divergence < 1e-12).all()
    rounded = top_k_divergence(shuffled.float(), ids, log_p.float(), tail="bucket").divergence
    assert (rounded >= 0).all() and (rounded < 1e-5).all()
    moved = teacher.clone()
    moved.scatter_add_(1, ids[:, :1].long(), torch.ones(len(teacher), 1).double())
    assert (top_k_divergence(moved, ids, log_p, tail="bucket").divergence > 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(TAILS), st.floats(-1e4, 1e4))
def test_blind_to_shifts_of_the_logits_and_to_the_order_of_ids(shape, tail, shift):
    student, teacher, k = problem(shape)
    ids, log_p = known(teacher, k)
    value = top_k_divergence(student, ids, log_p, tail=tail).divergence
    order = torch.randperm(k, generator=torch.Generator().manual_seed(shape[-1]))
    result = top_k_divergence(student + shift, ids[:, order], log_p[:, order], tail=tail).divergence
    torch.testing.assert_close(result, value, rtol=1e-8, atol=1e-8)
    result = top_k_divergence(student.flip(-1), student.shape[1] - 1 - ids, log_p, tail=tail).divergence
    torch.testing.assert_close(result, value, rtol=1e-8, atol=1e-8)


def test_what_makes_no_sense_is_refused():
    logits, ids, log_p = torch.zeros(2, 5), torch.tensor([[0, 1], [3, 4]]), torch.full((2, 2), -1.0)

    def call(student=logits, ids=ids, log_p=log_p, tail="bucket", **more) -> TopKDivergence:
        return top_k_divergence(student, ids, log_p, tail=tail, **more)

    call()
    for message, wrong in {
        "tail 'drop'": {"tail": "drop"},
        "objective 'jsd'": {"objective": "jsd"},
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
