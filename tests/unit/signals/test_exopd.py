"""ExOPD, sampled and exact: one signal in two forms, against float64 over a small vocabulary."""

from __future__ import annotations

import pytest
import torch

from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import GivenLogits, LinearLogits
from verl_s2d.signals.exact import ReverseKL
from verl_s2d.signals.exopd import ExactExOPD, ExOPD
from verl_s2d.signals.sampled import Sampled

LAMBDAS = [0.5, 1.0, 1.25, 2.0]
SIZE = 12


def logits(seed: int, rows: int = 1) -> torch.Tensor:
    return 2 * torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def composed(teacher: torch.Tensor, base: torch.Tensor, lam: float) -> torch.Tensor:
    """Log-probs of q, in proportion to p_T^lambda p_base^(1 - lambda)."""
    return (lam * teacher.log_softmax(-1) + (1 - lam) * base.log_softmax(-1)).log_softmax(-1)


def reverse_kl(student: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    log_s = student.log_softmax(-1)
    return (log_s.exp() * (log_s - log_q)).sum(-1)


def advantages_of_every_token(lam: float, student, teacher, base) -> torch.Tensor:
    """(SIZE,) A of each token that one state's sample could be."""
    frozen = {"teacher": teacher.log_softmax(-1), "base": base.log_softmax(-1)}
    signal = ExOPD(**{"lambda": lam})
    return signal.advantages(student.log_softmax(-1), frozen, torch.ones(1, SIZE))[0].double()


@pytest.mark.parametrize("lam", LAMBDAS)
def test_its_expected_policy_gradient_is_the_finite_difference_of_the_kl_and_the_exact_signal_s(lam):
    student, teacher, base = logits(0), logits(1), logits(2)
    advantages = advantages_of_every_token(lam, student, teacher, base)
    p = student.softmax(-1)[0]
    # Gradient of -E_y[A(y) log p(y)] with A held fixed.
    expected = -p * (advantages - (p * advantages).sum())

    log_q, step = composed(teacher, base, lam), 1e-6
    units = step * torch.eye(SIZE, dtype=torch.float64)
    slopes = [(reverse_kl(student + e, log_q) - reverse_kl(student - e, log_q)) / (2 * step) for e in units]
    torch.testing.assert_close(expected, torch.cat(slopes), atol=2e-6, rtol=0)  # advantages are float32

    z = student.clone().requires_grad_()
    frozen = {"teacher": GivenLogits(teacher), "base": GivenLogits(base)}
    signal = ExactExOPD(**{"lambda": lam})
    found = divergence(z, signal.teacher(frozen), **signal.divergence_options())
    found.divergence.sum().backward()
    torch.testing.assert_close(found.divergence, reverse_kl(student, log_q), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.grad[0], torch.cat(slopes), atol=1e-8, rtol=0)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_advantage_differs_from_the_log_ratio_to_q_by_one_number_a_state(lam):
    student, teacher, base = logits(3), logits(4), logits(5)
    ratio = (composed(teacher, base, lam) - student.log_softmax(-1))[0]
    difference = advantages_of_every_token(lam, student, teacher, base) - ratio
    torch.testing.assert_close(difference, difference[:1].expand(SIZE), atol=1e-5, rtol=0)


def test_lambda_one_is_bitwise_plain_opd():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    student, teacher, base = (-torch.rand(2, 4, generator=torch.Generator().manual_seed(i)) * 9 for i in range(3))
    found = ExOPD(beta=0.5, whiten=True, **{"lambda": 1}).advantages(student, {"teacher": teacher, "base": base}, mask)
    assert torch.equal(found, Sampled(beta=0.5, whiten=True).advantages(student, {"teacher": teacher}, mask))

    hidden, heads = torch.randn(5, 8), [torch.randn(SIZE, 8) for _ in range(3)]
    student, teacher, base = (LinearLogits(hidden, head) for head in heads)
    plain, one = ReverseKL(), ExactExOPD(**{"lambda": 1})
    frozen = {"teacher": teacher, "base": base}
    for a, b in zip(
        divergence(student, one.teacher(frozen), **one.divergence_options()),
        divergence(student, plain.teacher(frozen), **plain.divergence_options()),
        strict=True,
    ):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_outside_the_mask_there_is_no_advantage():
    nothing = torch.full((1, 2), torch.nan)
    found = ExOPD().advantages(nothing, {"teacher": nothing, "base": nothing}, torch.zeros(1, 2))
    assert torch.equal(found, torch.zeros(1, 2))
