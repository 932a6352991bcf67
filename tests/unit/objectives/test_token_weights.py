"""Selection of tokens and weights of problems against their formulas, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_s2d.objectives.token_weights import (
    BatchRange,
    batch_range,
    expand_to_tokens,
    paced_problem_weights,
    rollout_of_token,
    select_tokens,
    soft_or_score,
)

# Entropy, divergence and mask of a token. Few different values, so that there are ties.
TOKENS = st.tuples(st.sampled_from([0.0, 0.25, 1.0, 2.5, 7.0]), st.sampled_from([0.0, 0.5, 3.0, 40.0]), st.booleans())
BATCHES = st.lists(st.lists(TOKENS, max_size=12), max_size=6)


def packed(rollouts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entropies, divergences, mask and cu_seqlens."""
    flat = torch.tensor([token for rollout in rollouts for token in rollout], dtype=torch.float64).reshape(-1, 3)
    ends = torch.tensor([0] + [len(rollout) for rollout in rollouts]).cumsum(0).int()
    return flat[:, 0], flat[:, 1], flat[:, 2].bool(), ends


def definition(rollouts, keep_percent: int) -> list[float]:
    """TIP, one token at a time; an earlier token wins a tie."""
    wanted = [(entropy, value) for rollout in rollouts for entropy, value, counts in rollout if counts]
    if not wanted:
        return [0.0 for rollout in rollouts for _ in rollout]
    entropies, values = (sorted(column) for column in zip(*wanted, strict=True))
    clip = next(e for n, e in enumerate(entropies, 1) if 100 * n >= 98 * len(entropies))

    def minmax(x, low, high):
        return (x - low) / (high - low) if high > low else 0.0

    weights = []
    for rollout in rollouts:
        scores = {
            place: 1 - (1 - minmax(min(entropy, clip), entropies[0], clip)) * (1 - minmax(value, values[0], values[-1]))
            for place, (entropy, value, counts) in enumerate(rollout)
            if counts
        }
        kept = sorted(scores, key=lambda place: (-scores[place], place))[: keep_percent * len(scores) // 100]
        weights += [float(place in kept) for place in range(len(rollout))]
    return weights


@settings(deadline=None, max_examples=150)
@given(BATCHES, st.sampled_from([1, 20, 29, 50, 70, 100]), st.integers(0, 3))
def test_selects_what_the_formula_says(rollouts, keep_percent, padding):
    entropy, value, mask, ends = packed(rollouts)
    expected = definition(rollouts, keep_percent) + [0.0] * padding
    # Neither padding nor masked tokens are looked at.
    entropy, value = (torch.cat([part, torch.full((padding,), 99.0)]) for part in (entropy, value))
    mask = torch.cat([mask, torch.ones(padding, dtype=torch.bool)])
    entropy[~mask], value[~mask] = math.nan, -math.inf
    weights = select_tokens(entropy, value, ends, keep=keep_percent / 100, mask=mask)
    assert weights.tolist() == expected and weights.dtype == torch.float32


def test_both_uncertain_and_confidently_wrong_tokens_are_kept():
    entropy = torch.tensor([5.0, 0.0, 0.1, 0.2])
    divergence = torch.tensor([0.0, 9.0, 0.1, 0.1])
    assert select_tokens(entropy, divergence, torch.tensor([0, 4])).tolist() == [1, 1, 0, 0]


def test_the_score_is_the_soft_or_of_both_after_the_clip():
    entropy, divergence = torch.arange(100).double(), torch.linspace(0, 2, 100).double().flip(0)
    extent = batch_range(entropy, divergence)
    assert extent._replace(divergence_median=0) == (0, 97, 49, 0, 2, 0)
    assert extent.divergence_median == divergence.median()
    h, d = entropy.clamp(max=97) / 97, divergence / 2
    torch.testing.assert_close(soft_or_score(entropy, divergence), 1 - (1 - h) * (1 - d))
    # log V, which TIP divides by, cancels.
    torch.testing.assert_close(soft_or_score(entropy / 11.9, divergence), 1 - (1 - h) * (1 - d))


@settings(deadline=None, max_examples=60)
@given(BATCHES, st.integers(0, 6))
def test_a_batch_in_two_parts_selects_the_same(rollouts, cut):
    entropy, value, mask, ends = packed(rollouts)
    whole = select_tokens(entropy, value, ends, mask=mask)
    extent = batch_range(entropy, value, mask)
    found = []
    for part in (rollouts[:cut], rollouts[cut:]):
        entropy, value, mask, ends = packed(part)
        found.append(select_tokens(entropy, value, ends, mask=mask, extent=extent))
    assert torch.equal(torch.cat(found), whole)


def test_a_constant_batch_keeps_the_earliest_tokens_and_a_single_token_none():
    same = torch.ones(6)
    assert select_tokens(same, same, torch.tensor([0, 5, 6])).tolist() == [1, 1, 0, 0, 0, 0]
    assert (soft_or_score(same, same) == 0).all()
    assert select_tokens(same, same, torch.tensor([0, 5, 6]), keep=1.0).tolist() == [1] * 6
    # One coordinate constant: the other decides.
    assert select_tokens(same, torch.arange(6.0), torch.tensor([0, 6])).tolist() == [0, 0, 0, 1, 1, 1]
    # The binary 0.29 is a little less than it says.
    assert select_tokens(torch.ones(100), torch.ones(100), torch.tensor([0, 100]), keep=0.29).sum() == 29
    assert select_tokens(torch.zeros(0), torch.zeros(0), torch.tensor([0])).shape == (0,)
    assert select_tokens(same, same, torch.tensor([0, 6]), mask=torch.zeros(6)).sum() == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_token_is_kept_and_spoils_no_other(broken):
    entropy, divergence = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 2.0, broken])
    score = soft_or_score(entropy, divergence)
    torch.testing.assert_close(score[:3], soft_or_score(entropy[:3], divergence[:3]))
    assert score[3] == 1
    assert select_tokens(entropy, divergence, torch.tensor([0, 4])).tolist() == [0, 0, 1, 1]
    assert torch.isfinite(soft_or_score(divergence[3:], divergence[3:])).all()


def test_weights_carry_no_gradient_and_low_precision_is_widened():
    entropy = torch.tensor([300.0, 301.0, 0.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    weights = select_tokens(entropy, entropy.detach(), torch.tensor([0, 4], dtype=torch.int32))
    assert not weights.requires_grad and weights.dtype == torch.float32
    # 301 - 0.1 is not a bfloat16.
    rough = torch.tensor([0.1, 1.0, 77.0, 301.0]).bfloat16()
    score = soft_or_score(rough, rough.flip(0))
    torch.testing.assert_close(score, soft_or_score(rough.float(), rough.flip(0).float()), rtol=0, atol=0)


def test_paced_weights_prefer_problems_in_between():
    rates = torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0])
    raw = torch.tensor([0, 7, 16, 7, 0]) / 64
    torch.testing.assert_close(paced_problem_weights(rates), raw / raw.mean())
    torch.testing.assert_close(
        paced_problem_weights(rates, a=2, b=0.5), (w := rates**2 * (1 - rates) ** 0.5) / w.mean()
    )
    torch.testing.assert_close(paced_problem_weights(rates, a=0, b=0), torch.ones(5))
    assert paced_problem_weights(torch.tensor([0.0, 1.0])).tolist() == [0, 0]
    assert paced_problem_weights(torch.zeros(0)).shape == (0,)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=20), st.sampled_from([0.5, 1.0, 3.0]))
def test_paced_weights_have_mean_one_unless_all_are_zero(passed, exponent):
    weights = paced_problem_weights(torch.tensor(passed) / 8, a=exponent, b=exponent)
    assert (weights >= 0).all()
    assert weights.double().mean().item() == pytest.approx(float(any(0 < count < 8 for count in passed)), abs=1e-6)


def test_problems_solved_always_or_never_teach_nothing_and_the_slice_weighs_as_before():
    rates = torch.tensor([0, 1, 4, 8, 7, 0, 8]) / 8
    weights = paced_problem_weights(rates)
    assert (weights[(rates == 0) | (rates == 1)] == 0).all() and weights.double().sum().item() == pytest.approx(7)
    # Weights are of the slice: a micro-batch takes its share of them, so the loss is that of the whole.
    rollouts = torch.arange(7).repeat_interleave(2)
    ends = torch.arange(0, 3 * len(rollouts) + 1, 3)
    losses = torch.rand(3 * len(rollouts), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses.requires_grad_()
    (losses * expand_to_tokens(weights[rollouts], ends, len(losses))).sum().backward()
    whole = losses.grad.clone()
    assert (whole.reshape(7, 6)[(rates == 0) | (rates == 1)] == 0).all()
    parts = [expand_to_tokens(weights[part], torch.arange(0, 3 * len(part) + 1, 3), 3 * len(part))
             for part in rollouts.split(4)]  # fmt: skip
    assert torch.equal(torch.cat(parts).double(), whole)


def test_weights_of_rollouts_reach_their_tokens_and_no_padding():
    ends = torch.tensor([0, 2, 2, 5])
    assert rollout_of_token(ends, 7).tolist() == [0, 0, 2, 2, 2, 3, 3]
    problems = torch.tensor([1, 0, 1])
    weights = expand_to_tokens(torch.tensor([0.5, 1.5])[problems], ends, 7)
    assert weights.tolist() == [1.5, 1.5, 1.5, 1.5, 1.5, 0, 0]


def test_what_makes_no_sense_is_refused():
    three, ends = torch.ones(3), torch.tensor([0, 3])
    for message, call in {
        "student_entropy of shape": lambda: select_tokens(torch.ones(2), three, ends),
        "mask of shape": lambda: select_tokens(three, three, ends, mask=torch.ones(2)),
        "keep 0": lambda: select_tokens(three, three, ends, keep=0),
        "keep 1.5": lambda: select_tokens(three, three, ends, keep=1.5),
        r"cu_seqlens \[0, 4\]": lambda: select_tokens(three, three, torch.tensor([0, 4])),
        r"cu_seqlens \[1, 3\]": lambda: select_tokens(three, three, torch.tensor([1, 3])),
        r"cu_seqlens \[0, 2, 1\]": lambda: select_tokens(three, three, torch.tensor([0, 2, 1])),
        r"cu_seqlens \[\]": lambda: select_tokens(three, three, torch.tensor([]).long()),
        "a -1": lambda: paced_problem_weights(three, a=-1),
        "not between 0 and 1": lambda: paced_problem_weights(torch.tensor([0.5, 1.5])),
        "nan": lambda: paced_problem_weights(torch.tensor([math.nan])),
        "weights for 1 rollouts": lambda: expand_to_tokens(three, ends, 3),
        "divergence of shape": lambda: soft_or_score(three, torch.ones(2), BatchRange(*torch.zeros(6))),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
