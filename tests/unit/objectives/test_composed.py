"""Composed teachers: against the weighted sum written out, and finite differences of its divergence."""

from __future__ import annotations

import pytest
import torch

from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits
from verl_s2d.objectives.overlap import top_k_health

TOKENS, VOCABULARY = 7, 12
FACTORS = (1.25, -0.5, 0.25)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(seed: int, dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY, **options) -> LinearLogits:
    width = 3 + seed
    hidden, head = normal(TOKENS, width, seed=seed, dtype=dtype), normal(vocabulary, width, seed=seed + 50, dtype=dtype)
    return LinearLogits(hidden, head, **options)


def parts(dtype: torch.dtype = torch.float64) -> tuple[tuple[LinearLogits | GivenLogits, ...], torch.Tensor]:
    """Three parts, with bias, temperature and softcap among them, and their weighted sum in float64."""
    bias = normal(VOCABULARY, seed=99, dtype=dtype)
    first = linear(1, dtype, bias=bias, temperature=0.7)
    second = linear(2, dtype, vocabulary=VOCABULARY + 2, softcap=2.0)
    given = GivenLogits(normal(TOKENS, VOCABULARY + 1, seed=3, dtype=dtype))
    z = [
        (first.hidden.double() @ first.head.double().T + bias.double()) / 0.7,
        2 * torch.tanh(second.hidden.double() @ second.head.double().T / 2)[:, :VOCABULARY],
        given.logits.double()[:, :VOCABULARY],
    ]
    return (first, second, given), sum(c * each for c, each in zip(FACTORS, z, strict=True))


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-5)]
)
def test_equals_the_sum_written_out_whatever_comes_first(order, dtype, tolerance):
    each, expected = parts(dtype)
    composed = ComposedLogits(tuple(each[i] for i in order), tuple(FACTORS[i] for i in order))
    assert (composed.tokens, composed.vocab_size) == (TOKENS, VOCABULARY)
    out = torch.empty(3, VOCABULARY - 1, dtype=composed.dtype)
    rows = torch.tensor([6, 0, 3])
    torch.testing.assert_close(
        composed.write(rows, out).double(), expected[rows, : VOCABULARY - 1], atol=tolerance, rtol=tolerance
    )


def test_a_large_head_is_added_block_by_block():
    hidden, heads = normal(600, 64, seed=0).float(), [normal(9000, 64, seed=i).float() for i in (1, 2)]
    composed = ComposedLogits(tuple(LinearLogits(hidden, head) for head in heads), (1.5, -0.5))
    expected = 1.5 * hidden @ heads[0].T - 0.5 * hidden @ heads[1].T
    torch.testing.assert_close(composed.write(slice(None), torch.empty(600, 9000)), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("make", ["linear", "given"])
def test_a_composed_teacher_is_one_with_these_logits(objective, make):
    each, z = parts()
    composed = ComposedLogits(each, FACTORS)
    weights = normal(TOKENS, seed=7).abs()
    results = []
    for teacher in (composed, z):
        hidden, head = normal(TOKENS, 5, seed=20).requires_grad_(), normal(VOCABULARY, 5, seed=21).requires_grad_()
        student = LinearLogits(hidden, head) if make == "linear" else hidden @ head.T
        found = divergence(
            student, teacher, objective=objective, beta=0.3, weights=weights, vocab_size=VOCABULARY, chunk_tokens=2
        )
        (found.divergence * weights).sum().backward()
        results.append((found.divergence.detach(), found.teacher_entropy, hidden.grad, head.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    found, expected = (top_k_health(hidden @ head.T, t, k=3, vocab_size=VOCABULARY) for t in (composed, z))
    torch.testing.assert_close(list(found), list(expected))


def test_its_gradient_is_the_finite_difference_of_the_kl_to_the_composed_distribution():
    each, z = parts()
    values, step = normal(TOKENS, VOCABULARY, seed=30), 1e-6
    student = values.clone().requires_grad_()
    divergence(student, ComposedLogits(each, FACTORS), objective="reverse_kl").divergence.sum().backward()
    for i in range(VOCABULARY):
        unit = step * torch.eye(VOCABULARY, dtype=torch.float64)[i]
        slope = (reverse_kl(values + unit, z) - reverse_kl(values - unit, z)) / (2 * step)
        torch.testing.assert_close(student.grad[:, i], slope, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_of_one_and_others_of_zero_are_bitwise_the_one_part(dtype):
    each, _ = parts(dtype)
    composed = ComposedLogits(each, (1.0, 0.0, 0.0))
    student = normal(TOKENS, VOCABULARY, seed=40).float()
    for found, expected in zip(
        divergence(student, composed, vocab_size=VOCABULARY),
        divergence(student, each[0], vocab_size=VOCABULARY),
        strict=True,
    ):
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_an_id_ruled_out_with_a_positive_factor_is_ruled_out_and_with_a_negative_one_gives_nan():
    teacher, base = normal(1, 4, seed=1), normal(1, 4, seed=2)
    teacher[0, 2] = -torch.inf
    student, factors = normal(1, 4, seed=3), (1.5, -0.5)
    found = divergence(student, ComposedLogits((GivenLogits(teacher), GivenLogits(base)), factors))
    expected = divergence(student, 1.5 * teacher - 0.5 * base)
    torch.testing.assert_close(found.divergence, expected.divergence)
    swapped = divergence(student, ComposedLogits((GivenLogits(base), GivenLogits(teacher)), factors))
    assert swapped.divergence.isnan().all()


@pytest.mark.parametrize(
    ("count", "factors", "words"),
    [(2, (1.5, -0.4), "sum to 1"), (2, (1.0,), "2 parts and 1 factors"), (0, (), "0 parts")],
)
def test_what_is_no_composition_is_refused(count, factors, words):
    each, _ = parts()
    with pytest.raises(ValueError, match=words):
        ComposedLogits(each[:count], factors)


def test_parts_of_other_tokens_and_a_composed_student_are_refused():
    each, _ = parts()
    with pytest.raises(ValueError, match="tokens"):
        ComposedLogits((each[0], GivenLogits(normal(TOKENS + 1, VOCABULARY, seed=1))), (0.5, 0.5))
    with pytest.raises(ValueError, match="a teacher's only"):
        divergence(ComposedLogits(each, FACTORS), each[0])
