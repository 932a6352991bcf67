"""The advantage of on-policy distillation: its gradient is that of the reverse KL, and it sees masked tokens only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from verl_s2d.errors import UserError
from verl_s2d.objectives.opd import sampled_token_advantage
from verl_s2d.signals.in_verl.advantage_estimator import s2d_opd
from verl_s2d.signals.sampled import Sampled
from verl_s2d.stages.opd.metrics import advantage_metrics, rollout_metrics, sampled_reverse_kl_metrics

SHAPE = (3, 5)
log_probs = arrays(np.float32, SHAPE, elements=st.floats(-20, 0, width=32)).map(torch.from_numpy)
masks = arrays(np.int64, SHAPE, elements=st.integers(0, 1)).map(torch.from_numpy)


def small_softmaxes(seed: int, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Student logits (with gradient) and teacher log-probs over one small vocabulary, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(size, generator=generator, dtype=torch.float64)).requires_grad_()
    return logits, (2 * torch.randn(size, generator=generator, dtype=torch.float64)).log_softmax(-1)


def reverse_kl(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student = logits.log_softmax(-1)
    return (student.exp() * (student - teacher)).sum()


def expected_surrogate_gradient(logits: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Gradient of -E_y[A(y) ratio(y)] over every token y: verl's policy loss when nothing is clipped."""
    student = logits.log_softmax(-1)
    ratio = (student - student.detach()).exp()
    (gradient,) = torch.autograd.grad(-(student.detach().exp() * advantages * ratio).sum(), logits)
    return gradient


@pytest.mark.parametrize("seed", range(5))
def test_the_expected_gradient_is_that_of_the_reverse_kl(seed):
    logits, teacher = small_softmaxes(seed)
    student = logits.log_softmax(-1).detach()
    kl = reverse_kl(logits, teacher).detach()
    exact = student.exp() * (student - teacher - kl)

    every_token = torch.ones(1, len(student))
    advantages = sampled_token_advantage(teacher[None], student[None], every_token)[0].double()
    torch.testing.assert_close(expected_surrogate_gradient(logits, advantages), exact, atol=1e-6, rtol=0)
    # The same without the float32 of the product's tensors.
    torch.testing.assert_close(expected_surrogate_gradient(logits, teacher - student), exact, atol=1e-14, rtol=0)

    step = 1e-6
    unit = torch.eye(len(student), dtype=torch.float64)
    values = logits.detach()
    difference = [
        (reverse_kl(values + step * e, teacher) - reverse_kl(values - step * e, teacher)) / (2 * step) for e in unit
    ]
    torch.testing.assert_close(torch.stack(difference), exact, atol=1e-8, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_full_vocabulary_divergence_as_an_advantage_teaches_nothing(seed):
    """It is one number for whatever token was sampled, so its expected gradient is zero: why it is never one here."""
    logits, teacher = small_softmaxes(seed)
    divergence = reverse_kl(logits, teacher).detach()
    assert divergence > 0.1
    gradient = expected_surrogate_gradient(logits, -divergence.expand(len(logits)))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-14, rtol=0)


@given(log_probs, log_probs, masks, st.sampled_from([math.nan, math.inf, -math.inf, 7.0]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_stands_outside_the_mask_does_not_matter(teacher, old, mask, junk, whiten):
    clean = sampled_token_advantage(teacher, old, mask, whiten=whiten)
    outside = ~mask.bool()
    dirty = sampled_token_advantage(
        teacher.masked_fill(outside, junk), old.masked_fill(outside, -junk), mask, whiten=whiten
    )
    assert torch.equal(clean, dirty)
    assert torch.isfinite(clean).all() and (clean[outside] == 0).all()


@given(log_probs, log_probs, masks, st.floats(-4, 4))
@settings(deadline=None, max_examples=60)
def test_linear_in_beta_and_antisymmetric(teacher, old, mask, beta):
    unit = sampled_token_advantage(teacher, old, mask)
    torch.testing.assert_close(sampled_token_advantage(teacher, old, mask, beta=beta), beta * unit)
    torch.testing.assert_close(sampled_token_advantage(old, teacher, mask), -unit)
    assert (sampled_token_advantage(old, old, mask) == 0).all()


@given(log_probs, log_probs, masks)
@settings(deadline=None, max_examples=60)
def test_whitened_tokens_have_zero_mean_and_unit_variance(teacher, old, mask):
    plain = sampled_token_advantage(teacher, old, mask)[mask.bool()]
    white = sampled_token_advantage(teacher, old, mask, whiten=True)[mask.bool()]
    if len(plain) < 2:
        assert torch.equal(plain, white), "one token has no variance"
    elif plain.std() > 1e-2:
        assert abs(white.mean()) < 1e-3 and abs(white.std() - 1) < 1e-3


@given(log_probs, log_probs, masks)
@settings(deadline=None, max_examples=60)
def test_centred_tokens_differ_by_the_batch_s_mean_and_by_nothing_else(teacher, old, mask):
    plain = sampled_token_advantage(teacher, old, mask, beta=2)
    centred = sampled_token_advantage(teacher, old, mask, beta=2, centre=True)
    tokens = mask.bool()
    assert (centred[~tokens] == 0).all()
    if tokens.sum() < 2:
        assert torch.equal(plain, centred), "one token has nothing to compare it with"
    else:
        mean = plain[tokens].double().mean()
        torch.testing.assert_close(centred[tokens].double(), plain[tokens].double() - mean, atol=1e-4, rtol=1e-5)


def test_no_gradient_flows_and_any_float_type_goes():
    teacher = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    old = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    advantages = sampled_token_advantage(teacher, old, torch.ones(2, 3, dtype=torch.bool))
    assert not advantages.requires_grad and advantages.dtype == torch.float32


def test_the_registered_estimator_is_the_same_number_twice():
    teacher, old, mask = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    advantages, returns = s2d_opd(
        torch.full((2, 3), 9.0), mask, signal=Sampled(beta=2), old_log_probs=old, frozen_log_probs={"teacher": teacher}
    )
    assert torch.equal(advantages, sampled_token_advantage(teacher, old, mask, beta=2))
    assert torch.equal(advantages, returns)


def test_the_estimator_without_a_teacher_says_which_trainer_has_one():
    with pytest.raises(UserError) as caught:
        s2d_opd(torch.zeros(2, 3), torch.ones(2, 3))
    assert caught.value.key == "trainer.v1.trainer_mode"


def test_metrics_are_over_sampled_tokens_only():
    student = torch.tensor([[-1.0, -2.0, math.nan], [-3.0, math.inf, 0.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[-2.0, -1.0, math.nan], [-9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert sampled_reverse_kl_metrics(student, teacher, mask) == {"s2d/reverse_kl": 2.0, "s2d/reverse_kl_max": 6.0}
    assert rollout_metrics(mask, scored=True) == {
        "s2d/sampled_tokens": 3,
        "s2d/teacher_scored_tokens": 3,
        "s2d/response_length": 1.5,
    }
    assert rollout_metrics(mask, scored=False)["s2d/teacher_scored_tokens"] == 0
    none = torch.zeros_like(mask)
    nothing = sampled_reverse_kl_metrics(student, teacher, none) | rollout_metrics(none, scored=True)
    assert set(nothing.values()) == {0}


def test_a_percentile_of_advantages_leaves_out_one_token_in_a_thousand():
    advantages = torch.linspace(-1, 0, 2000).reshape(2, 1000)
    advantages[0, :2] = torch.tensor([-50.0, 40.0])
    mask = torch.ones(2, 1000)
    sizes = advantages.abs().flatten().sort().values
    assert advantage_metrics(advantages, mask) == {"s2d/advantage_p99.9": sizes[-3].item()}
    mask[0], mask[1, 500:] = 0, 0
    assert advantage_metrics(advantages, mask)["s2d/advantage_p99.9"] == advantages[1, 0].abs().item()
    assert advantage_metrics(advantages, torch.zeros_like(mask)) == {"s2d/advantage_p99.9": 0.0}
