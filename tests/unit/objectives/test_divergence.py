"""The divergence against its definition in float64, finite differences and its own invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.divergence_reference import OBJECTIVES, cast, definition, gradients, linear, materialised, normal
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import LinearLogits

SHAPES = st.tuples(st.integers(0, 9), st.integers(2, 40), st.integers(0, 2**31 - 1))


@settings(deadline=None, max_examples=60)
@given(SHAPES, OBJECTIVES, st.integers(1, 12), st.floats(0.05, 0.95))
def test_logits_value_and_gradient_equal_the_definition_at_any_chunk_size(shape, objective, chunk, beta):
    tokens, vocabulary, seed = shape
    student = normal(tokens, vocabulary, seed=seed, scale=3, dtype=torch.float32).requires_grad_()
    teacher = normal(tokens, vocabulary, seed=seed + 1, scale=3, dtype=torch.float32)
    upstream = torch.linspace(-1, 2, tokens)
    result = divergence(student, teacher, objective=objective, beta=beta, chunk_tokens=chunk).divergence
    exact = student.detach().double().requires_grad_()
    expected = definition(exact, teacher, objective, beta)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    (result * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-5, atol=2e-5)


@settings(deadline=None, max_examples=80)
@given(
    SHAPES,
    OBJECTIVES,
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([None, 5.0]),
    st.sampled_from([1.0, 0.7]),
    st.sampled_from(["none", "right", "scaled", "one wrong", "wrong", "zeros"]),
)
def test_linear_gradients_equal_the_definition_whatever_was_said_of_the_weights(
    shape, objective, chunk, bias, softcap, temperature, hint
):
    tokens, vocabulary, seed = shape
    student = linear(tokens, vocabulary, 4, seed, bias=normal(vocabulary, seed=seed) if bias else None)
    student = cast(replace(student, softcap=softcap, temperature=temperature), torch.float64)
    teacher = linear(tokens, vocabulary, 6, seed + 2, temperature=temperature)
    upstream = normal(tokens, seed=seed + 3)
    weights = {
        "none": None,
        "right": upstream,
        "scaled": -3 * upstream,
        "one wrong": torch.cat([upstream[:-1], upstream[-1:] + 1]),
        "wrong": normal(tokens, seed=seed + 4),
        "zeros": torch.zeros(tokens),
    }[hint]
    mask = torch.ones(tokens) if hint == "zeros" else None
    result = divergence(student, teacher, objective=objective, weights=weights, mask=mask, chunk_tokens=chunk)
    expected = definition(materialised(student), materialised(teacher), objective)
    torch.testing.assert_close(result.divergence, expected, rtol=1e-9, atol=1e-11)
    ours, exact = ((d * upstream).sum() for d in (result.divergence, expected))
    for a, b in zip(gradients(ours, student), gradients(exact, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("hinted", [False, True])
def test_finite_differences(objective, hinted):
    student, teacher = cast(linear(3, 7, 4, 0, softcap=3.0), torch.float64), linear(3, 9, 5, 2)
    weights = torch.tensor([1.0, 0.0, -2.0]).double() if hinted else None

    def loss(hidden, head):
        result = divergence(
            replace(student, hidden=hidden, head=head), teacher, objective=objective, weights=weights, vocab_size=6
        )
        return result.divergence * torch.tensor([1.0, 0.0, -2.0])

    assert torch.autograd.gradcheck(loss, (student.hidden, student.head), atol=1e-7, rtol=1e-5, nondet_tol=1e-12)


@settings(deadline=None, max_examples=60)
@given(SHAPES, OBJECTIVES, st.floats(-1e4, 1e4))
def test_not_negative_zero_for_equal_and_blind_to_shifts_and_the_order_of_ids(shape, objective, shift):
    tokens, vocabulary, seed = shape
    student = normal(tokens, vocabulary, seed=seed, scale=3, dtype=torch.float32)
    teacher = normal(tokens, vocabulary, seed=seed + 1, scale=3, dtype=torch.float32)
    value = divergence(student, teacher, objective=objective).divergence
    assert (value >= 0).all()
    assert (divergence(student, student, objective=objective).divergence < 1e-6).all()
    # Adding the shift rounds the logits; the shifted ones are what must be exact.
    shifted = student + shift, teacher - shift
    result = divergence(*shifted, objective=objective).divergence
    torch.testing.assert_close(result.double(), definition(*shifted, objective), rtol=1e-5, atol=1e-5)
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    result = divergence(student[:, order], teacher[:, order], objective=objective).divergence
    torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-5)


def test_jsd_tends_to_the_kls_and_is_symmetric_in_the_middle():
    student, teacher = normal(4, 9, seed=0, scale=2), normal(4, 9, seed=1, scale=2)

    def value(objective, beta=0.5, pair=(student, teacher)):
        return divergence(*pair, objective=objective, beta=beta).divergence

    tiny = 1e-7
    torch.testing.assert_close(value("jsd", tiny) / tiny, value("forward_kl"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value("jsd", 1 - tiny) / tiny, value("reverse_kl"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value("jsd"), value("jsd", pair=(teacher, student)))
    assert (value("jsd") <= math.log(2)).all()


@settings(deadline=None, max_examples=40)
@given(SHAPES, OBJECTIVES, st.booleans(), st.booleans())
def test_masked_tokens_are_never_looked_at(shape, objective, hinted, given_logits):
    tokens, vocabulary, seed = shape
    assume(tokens > 0)
    mask = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    student, teacher = linear(tokens, vocabulary, 4, seed), linear(tokens, vocabulary, 4, seed + 2)
    expected = definition(materialised(student)[mask], materialised(teacher)[mask], objective)
    for side in (student, teacher):
        side.hidden[~mask] = math.nan
    student = cast(student, torch.float64)
    source = materialised(student).detach().requires_grad_() if given_logits else student
    result = divergence(source, teacher, objective=objective, **{"weights" if hinted else "mask": mask.double()})
    torch.testing.assert_close(result.divergence[mask], expected, rtol=1e-9, atol=1e-11)
    assert all((values[~mask] == 0).all() for values in result[:4])
    result.divergence.sum().backward()
    grad = source.grad if given_logits else student.hidden.grad
    assert (grad[~mask] == 0).all() and torch.isfinite(grad).all()
    assert given_logits or torch.isfinite(student.head.grad).all()


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_padding_of_either_vocabulary_has_no_probability(objective):
    student, teacher = linear(4, 10, 3, 0), linear(4, 10, 3, 2)
    expected = divergence(student, teacher, objective=objective).divergence
    wide_student = cast(replace(student, head=torch.cat([student.head, 50 * torch.ones(3, 3)])), torch.float64)
    wide_teacher = replace(teacher, head=torch.cat([teacher.head, torch.zeros(7, 3)]))
    for a, b in ((wide_student, wide_teacher), (materialised(wide_student), materialised(wide_teacher))):
        torch.testing.assert_close(divergence(a, b, objective=objective, vocab_size=10).divergence, expected)
    # Unequal and unnamed: the shorter vocabulary is the shared one.
    torch.testing.assert_close(divergence(student, wide_teacher, objective=objective).divergence, expected)
    divergence(wide_student, wide_teacher, objective=objective, vocab_size=10).divergence.sum().backward()
    assert (wide_student.head.grad[10:] == 0).all() and wide_student.head.grad[:10].abs().sum() > 0


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_stay_finite(objective, extreme):
    student, teacher = torch.zeros(2, 4), torch.zeros(2, 4)
    teacher[0, 0] = student[1, 1] = extreme
    student.requires_grad_()
    result = divergence(student, teacher, objective=objective, sampled_ids=torch.tensor([0, 1]))
    result.divergence.sum().backward()
    assert all(torch.isfinite(part).all() for part in result) and torch.isfinite(student.grad).all()
    torch.testing.assert_close(
        result.divergence.double(), definition(student.detach(), teacher, objective), rtol=1e-6, atol=1e-6
    )


def test_logits_spread_over_four_magnitudes_keep_value_and_gradient():
    student = normal(6, 50, seed=0, scale=1e4, dtype=torch.float32).requires_grad_()
    teacher = normal(6, 50, seed=1, scale=1e4, dtype=torch.float32)
    for objective in ("forward_kl", "reverse_kl"):
        value = divergence(student, teacher, objective=objective).divergence
        torch.testing.assert_close(
            value.double(), definition(student.detach(), teacher, objective), rtol=1e-6, atol=1e-5
        )


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_logits_that_are_not_numbers_are_not_hidden(objective):
    for broken in range(2):
        pair = [torch.zeros(2, 3), torch.zeros(2, 3)]
        pair[broken][1, 2] = math.nan
        value = divergence(*pair, objective=objective).divergence
        assert value[0] == 0 and torch.isnan(value[1])


def test_an_id_that_is_impossible_on_both_sides_contributes_nothing():
    student, teacher = torch.zeros(1, 3, requires_grad=True), torch.tensor([[0.0, 0.0, -math.inf]])
    value = divergence(student, teacher).divergence
    assert value.item() == pytest.approx(math.log(1.5), abs=1e-6)
    value.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[1 / 3 - 0.5, 1 / 3 - 0.5, 1 / 3]]))


def test_no_token_is_an_empty_result_with_zero_gradients():
    student, teacher = cast(linear(3, 5, 2, 0), torch.float32), cast(linear(3, 5, 2, 2), torch.float32)
    for weights in (torch.zeros(3), None):
        result = divergence(student, teacher, mask=torch.zeros(3), weights=weights)
        result.divergence.sum().backward()
        assert (result.divergence == 0).all()
        assert (student.hidden.grad == 0).all() and (student.head.grad == 0).all()
    empty = replace(student, hidden=torch.zeros(0, 2))
    assert divergence(empty, replace(teacher, hidden=torch.zeros(0, 2))).divergence.shape == (0,)


def test_nothing_reaches_the_teacher_and_a_frozen_head_gets_nothing():
    student, teacher = cast(linear(3, 5, 2, 0), torch.float32), cast(linear(3, 5, 2, 2), torch.float32)
    student.head.requires_grad_(False)
    divergence(student, teacher, weights=torch.ones(3)).divergence.sum().backward()
    assert student.hidden.grad.abs().sum() > 0 and student.head.grad is None
    assert teacher.hidden.grad is None and teacher.head.grad is None


@pytest.mark.parametrize("hinted", [False, True])
def test_two_backward_passes_through_one_graph_give_the_same_twice(hinted):
    student, teacher = cast(linear(5, 7, 3, 0), torch.float64), linear(5, 7, 3, 2)
    upstream = torch.linspace(-1, 2, 5).double()
    loss = (divergence(student, teacher, weights=upstream if hinted else None).divergence * upstream).sum()
    first = torch.autograd.grad(loss, [student.hidden, student.head], retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, [student.hidden, student.head])
    for a, b, c in zip(first, second, kept, strict=True):
        torch.testing.assert_close(a, b)
        assert (a == c).all()


@settings(deadline=None, max_examples=30)
@given(SHAPES, OBJECTIVES, st.booleans())
def test_byproducts_are_what_they_say_and_those_of_the_student_can_be_differentiated(shape, objective, given_logits):
    tokens, vocabulary, seed = shape
    student, teacher = cast(linear(tokens, vocabulary, 4, seed), torch.float64), linear(tokens, vocabulary, 4, seed + 2)
    ids = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    z_s, z_t = materialised(student), materialised(teacher)
    source = z_s if given_logits else student
    result = divergence(source, teacher, objective=objective, sampled_ids=ids, weights=torch.ones(tokens).double())
    expected_entropy = -(z_s.softmax(-1) * z_s.log_softmax(-1)).sum(-1)
    expected_log_prob = z_s.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(result.student_entropy, expected_entropy, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.student_log_prob, expected_log_prob, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.teacher_entropy, -(z_t.softmax(-1) * z_t.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(result.teacher_log_prob, z_t.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    assert (result.top1_agreement == (z_s.argmax(-1) == z_t.argmax(-1)).double()).all()
    upstream = [normal(tokens, seed=seed + n) for n in range(3)]
    ours = [result.divergence, result.student_entropy, result.student_log_prob]
    exact = [definition(z_s, z_t, objective), expected_entropy, expected_log_prob]
    losses = [sum((part * w).sum() for part, w in zip(parts, upstream, strict=True)) for parts in (ours, exact)]
    kept = [torch.autograd.grad(loss, [student.hidden, student.head], retain_graph=True) for loss in losses]
    for a, b in zip(*kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_sampled_id_outside_the_shared_vocabulary_has_no_probability():
    result = divergence(torch.zeros(2, 4), torch.zeros(2, 6), sampled_ids=torch.tensor([5, 1]))
    assert result.student_log_prob[0] == -math.inf and result.teacher_log_prob[0] == -math.inf
    assert result.student_log_prob[1] == pytest.approx(-math.log(4))
    assert divergence(torch.zeros(2, 4), torch.zeros(2, 4)).student_log_prob.isnan().all()


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_bfloat16_inputs_are_multiplied_into_float32(objective):
    student = cast(linear(16, 300, 32, 0), torch.bfloat16)
    teacher = linear(16, 300, 32, 2)
    teacher = replace(teacher, hidden=teacher.hidden.bfloat16(), head=teacher.head.bfloat16())
    result = divergence(student, teacher, objective=objective, weights=torch.ones(16) / 16).divergence
    exact = cast(student, torch.float64)
    expected = definition(materialised(exact), materialised(teacher), objective)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    (result / 16).sum().backward()
    for ours, reference in zip(
        (student.hidden.grad, student.head.grad), gradients((expected / 16).sum(), exact), strict=False
    ):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - reference).norm() / reference.norm() < 3e-3


def test_what_makes_no_sense_is_refused():
    two, three = torch.zeros(2, 3), torch.zeros(3, 3)
    for problem, call in {
        "student has 2 tokens": lambda: divergence(two, three),
        "objective 'k3'": lambda: divergence(two, two, objective="k3"),
        "beta 1": lambda: divergence(two, two, objective="jsd", beta=1),
        "vocab_size 4": lambda: divergence(two, two, vocab_size=4),
        "vocab_size 0": lambda: divergence(two, two, vocab_size=0),
        "chunk_tokens 0": lambda: divergence(two, two, chunk_tokens=0),
        "weights of shape": lambda: divergence(two, two, weights=torch.ones(3)),
        "width": lambda: LinearLogits(two, torch.zeros(5, 4)),
        "temperature 0": lambda: LinearLogits(two, two, temperature=0),
    }.items():
        with pytest.raises(ValueError, match=problem):
            call()
