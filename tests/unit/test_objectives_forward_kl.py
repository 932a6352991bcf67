"""Forward KL from logits against float64, finite differences and its own invariances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from verl_s2d.objectives.forward_kl import forward_kl

SHAPES = st.tuples(st.integers(0, 9), st.integers(2, 40), st.integers(0, 2**31 - 1))


def logits(tokens: int, vocabulary: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The definition, float64."""
    log_s, log_t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(1, 12))
def test_value_and_gradient_equal_the_float64_definition_at_any_chunk_size(shape, chunk):
    tokens, vocabulary, seed = shape
    student = logits(tokens, vocabulary, seed).float().requires_grad_()
    teacher = logits(tokens, vocabulary, seed + 1).float()
    weights = torch.linspace(-1, 2, tokens)
    result = forward_kl(student, teacher, chunk_tokens=chunk)
    exact = student.detach().double().requires_grad_()
    expected = reference(exact, teacher)
    torch.testing.assert_close(result.kl.double(), expected, rtol=1e-5, atol=1e-5)
    (result.kl * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_gradient_is_the_student_minus_the_teacher_and_matches_finite_differences():
    student, teacher = logits(3, 7, 0).requires_grad_(), logits(3, 9, 1)
    rows = torch.tensor([2, 0])
    (grad,) = torch.autograd.grad(forward_kl(student, teacher, rows=rows, vocab_size=6).kl.sum(), student)
    expected = torch.zeros_like(student)
    expected[rows, :6] = student.detach()[rows, :6].softmax(-1) - teacher[rows, :6].softmax(-1)
    torch.testing.assert_close(grad, expected, atol=1e-14, rtol=0)
    assert torch.autograd.gradcheck(
        lambda x: forward_kl(x, teacher, rows=rows, vocab_size=6, chunk_tokens=1).kl, student, atol=1e-8, rtol=1e-6
    )


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.floats(-1e4, 1e4))
def test_not_negative_zero_for_equal_and_blind_to_a_shift_of_all_logits(shape, shift):
    tokens, vocabulary, seed = shape
    student, teacher = logits(tokens, vocabulary, seed).float(), logits(tokens, vocabulary, seed + 1).float()
    kl = forward_kl(student, teacher).kl
    assert (kl >= -1e-6).all()
    assert forward_kl(student, student).kl.abs().sum() == 0
    # Adding the shift rounds the logits; the shifted ones, not the KL of the unrounded, are what must be exact.
    shifted = student + shift, teacher - shift
    torch.testing.assert_close(forward_kl(*shifted).kl.double(), reference(*shifted), rtol=1e-5, atol=1e-5)
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(forward_kl(student[:, order], teacher[:, order]).kl, kl, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_wanted_cost_nothing_and_get_no_gradient():
    student = logits(6, 11, 0).float().requires_grad_()
    teacher = logits(6, 11, 1).float()
    teacher[0] = float("nan")
    rows = torch.tensor([4, 1])
    kl = forward_kl(student, teacher, rows=rows).kl
    torch.testing.assert_close(kl.double(), reference(student.detach()[rows], teacher[rows]), rtol=1e-5, atol=1e-6)
    kl.sum().backward()
    assert (student.grad[[0, 2, 3, 5]] == 0).all() and student.grad[[1, 4]].abs().sum() > 0


def test_no_wanted_row_is_an_empty_result_with_a_zero_gradient():
    student = logits(3, 5, 0).float().requires_grad_()
    kl = forward_kl(student, logits(3, 5, 1).float(), rows=torch.empty(0, dtype=torch.int64)).kl
    kl.sum().backward()
    assert kl.shape == (0,) and (student.grad == 0).all()


def test_padding_of_the_vocabulary_has_no_probability_whatever_its_logits():
    student, teacher = logits(4, 10, 0).float(), logits(4, 10, 1).float()
    expected = forward_kl(student, teacher).kl
    padded_student = torch.cat([student, torch.full((4, 3), 50.0)], 1).requires_grad_()
    padded_teacher = torch.cat([teacher, torch.zeros(4, 7)], 1)
    result = forward_kl(padded_student, padded_teacher, vocab_size=10)
    torch.testing.assert_close(result.kl, expected)
    result.kl.sum().backward()
    assert (padded_student.grad[:, 10:] == 0).all()


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_stay_finite(extreme):
    student, teacher = torch.zeros(2, 4, requires_grad=True), torch.zeros(2, 4)
    teacher[0, 0] = extreme
    with torch.no_grad():
        student[1, 1] = extreme
    result = forward_kl(student, teacher)
    result.kl.sum().backward()
    assert all(torch.isfinite(part).all() for part in result) and torch.isfinite(student.grad).all()


def test_logits_spread_over_four_magnitudes_keep_value_and_gradient():
    student = logits(6, 50, 0, scale=1e4).float().requires_grad_()
    teacher = logits(6, 50, 1, scale=1e4).float()
    kl = forward_kl(student, teacher).kl
    torch.testing.assert_close(kl.double(), reference(student.detach(), teacher), rtol=1e-6, atol=1e-5)
    kl.sum().backward()
    exact = student.detach().double().softmax(-1) - teacher.double().softmax(-1)
    torch.testing.assert_close(student.grad.double(), exact, rtol=0, atol=1e-6)


def test_logits_that_are_not_numbers_are_not_hidden():
    for broken in range(2):
        pair = [torch.zeros(2, 3), torch.zeros(2, 3)]
        pair[broken][1, 2] = float("nan")
        kl = forward_kl(*pair).kl
        assert kl[0] == 0 and torch.isnan(kl[1])


class Allocations(TorchDispatchMode):
    """Sizes, in elements, of the memory that operations allocated: views and in-place results do not count."""

    def __init__(self, *inputs: torch.Tensor):
        super().__init__()
        self.sizes: list[int] = []
        self._known = {tensor.untyped_storage().data_ptr() for tensor in inputs}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = self._known | {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in before:
            self.sizes.append(result.numel())
        return result


def test_nothing_larger_than_a_chunk_is_allocated_but_the_gradient():
    tokens, vocabulary, chunk = 64, 50, 4
    student, teacher = logits(tokens, vocabulary, 0).float().requires_grad_(), logits(tokens, vocabulary, 1).float()
    with Allocations(student, teacher) as forward:
        kl = forward_kl(student, teacher, chunk_tokens=chunk, vocab_size=vocabulary - 1).kl
    assert max(forward.sizes) <= chunk * vocabulary
    with Allocations(student, teacher) as backward:
        kl.sum().backward()
    assert [size for size in backward.sizes if size > chunk * vocabulary] == [tokens * vocabulary]


def test_a_token_impossible_for_the_teacher_contributes_nothing():
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, float("-inf")]])
    result = forward_kl(student, teacher)
    assert result.kl.item() == pytest.approx(torch.log(torch.tensor(1.5)).item(), abs=1e-6)
    result.kl.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[1 / 3 - 0.5, 1 / 3 - 0.5, 1 / 3]]))


def test_byproducts_are_entropies_and_agreement_and_carry_no_gradient():
    student, teacher = logits(5, 8, 0).float().requires_grad_(), logits(5, 8, 1).float()
    result = forward_kl(student, teacher)
    for entropy, of in ((result.student_entropy, student), (result.teacher_entropy, teacher)):
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=of).entropy().detach())
        assert not entropy.requires_grad
    assert (result.top1_agreement == (student.argmax(-1) == teacher.argmax(-1)).float()).all()


def test_bfloat16_logits_are_worked_on_in_float32():
    student, teacher = logits(4, 64, 0).bfloat16().requires_grad_(), logits(4, 64, 1).bfloat16()
    kl = forward_kl(student, teacher).kl
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), reference(student.detach(), teacher), rtol=1e-5, atol=1e-5)
    kl.sum().backward()
    exact = (student.detach().double().softmax(-1) - teacher.double().softmax(-1)).bfloat16()
    torch.testing.assert_close(student.grad, exact)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="tokens"):
        forward_kl(torch.zeros(2, 3), torch.zeros(3, 3))
    for vocab_size in (4, 0):
        with pytest.raises(ValueError, match="vocab_size"):
            forward_kl(torch.zeros(2, 3), torch.zeros(2, 4), vocab_size=vocab_size)
