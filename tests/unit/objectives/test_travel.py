"""Distance from a stage's start, and quarters of responses, against the exact KL divergence and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_s2d.objectives.overlap import quarters
from verl_s2d.objectives.travel import k3, travel

LOG_PROBS = st.lists(st.floats(-40, 0), min_size=1, max_size=8)


@given(LOG_PROBS, st.randoms(use_true_random=False))
def test_k3_is_never_negative_and_zero_only_where_nothing_moved(start, random):
    now = [value if random.random() < 0.5 else random.uniform(-40, 0) for value in start]
    start, now = torch.tensor(start), torch.tensor(now)
    found = k3(start, now)
    assert (found >= 0).all() and found.dtype == torch.float64
    assert (found[start == now] == 0).all()
    moved = (start - now).abs() > 1e-6
    assert (found[moved] > 0).all()


def test_a_small_step_keeps_its_digits():
    """exp(r) - 1 - r is r^2 / 2 for a small r, far below the rounding of exp(r)."""
    start = torch.full((1, 3), -2.0, dtype=torch.float64)
    found = travel(start, start - 1e-7, torch.ones(1, 3))
    assert found == pytest.approx(1e-7 / math.sqrt(2), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31 - 1), st.integers(2, 12), st.floats(0, 2))
def test_its_expectation_over_the_students_tokens_is_the_exact_kl(seed, vocabulary, scale):
    generator = torch.Generator().manual_seed(seed)
    start, now = torch.randn(2, vocabulary, generator=generator, dtype=torch.float64).mul(scale).log_softmax(-1)
    expected = (now.exp() * (now - start)).sum()
    torch.testing.assert_close((now.exp() * k3(start, now)).sum(), expected, atol=1e-12, rtol=1e-9)


def test_the_root_of_the_mean_over_sampled_tokens_estimates_the_exact_kl():
    generator = torch.Generator().manual_seed(0)
    start, now = torch.randn(2, 8, generator=generator, dtype=torch.float64).mul(0.5).log_softmax(-1)
    tokens = torch.multinomial(now.exp(), 60_000, replacement=True, generator=generator).view(100, 600)
    exact = (now.exp() * (now - start)).sum().sqrt().item()
    assert travel(start[tokens], now[tokens], torch.ones(100, 600)) == pytest.approx(exact, rel=0.02)


def test_masked_tokens_do_not_count_and_a_batch_without_tokens_has_not_moved():
    start = torch.tensor([[-1.0, -2.0, math.nan], [-3.0, math.nan, math.nan]])
    now = torch.tensor([[-1.5, -2.0, 0.0], [-2.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = [math.exp(r) - 1 - r for r in (0.5, 0.0, -1.0)]
    assert travel(start, now, mask) == pytest.approx(math.sqrt(sum(expected) / 3))
    assert travel(start, now, torch.zeros(2, 3)) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=1, max_size=5))
def test_a_token_is_in_the_quarter_of_its_place_in_its_own_response(lengths):
    marks, expected = [], []
    for prompt, response in lengths:
        marks += [0] * prompt + [1] * response
        expected += [-1] * prompt + [4 * i // response for i in range(response)]
    offsets = torch.tensor([0, *(sum(map(sum, lengths[: i + 1])) for i in range(len(lengths)))])
    found = quarters(torch.tensor(marks, dtype=torch.bool), offsets)
    assert found.tolist() == expected
    for (_, response), rows in zip(lengths, torch.tensor_split(found, offsets[1:-1]), strict=True):
        counts = [int((rows == quarter).sum()) for quarter in range(4)]
        assert sum(counts) == response and max(counts) - min(counts) <= 1
