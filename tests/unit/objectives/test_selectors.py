"""TIP's other rankings of tokens, the clip of its divergence, and noise that no division of a batch changes."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from verl_s2d.objectives.token_noise import rollout_seeds, token_noise
from verl_s2d.objectives.token_weights import (
    SELECTORS,
    batch_range,
    select_tokens,
    selection_score,
    third_quadrant,
)
from verl_s2d.signals.signal import Selector

ROLLOUTS, LENGTH = 8, 400


def gammas(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entropies and divergences of a batch, skewed as those of models are, and cu_seqlens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: float, scale: float) -> torch.Tensor:
        size = torch.full((ROLLOUTS * LENGTH,), shape, dtype=torch.float64)
        return scale * torch._standard_gamma(size, generator=generator)

    return draw(0.5, 0.8), draw(0.4, 0.3), torch.arange(0, ROLLOUTS * LENGTH + 1, LENGTH)


def ids_of(ends: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randint(1000, (int(ends[-1]),), generator=torch.Generator().manual_seed(seed))


def noise_of(ids: torch.Tensor, ends: torch.Tensor, batch: int = 0) -> torch.Tensor:
    return token_noise(rollout_seeds(ids, ends), ends, len(ids), batch=batch)


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one == other).double().mean().item()


def test_a_signals_rankings_are_those_of_the_objective():
    assert get_args(Selector) == SELECTORS


def test_every_score_is_its_formula():
    entropy, value = (x[:LENGTH] for x in gammas()[:2])
    noise = noise_of(ids_of(torch.tensor([0, LENGTH])), torch.tensor([0, LENGTH]))
    clip = entropy.sort().values[math.ceil(0.98 * LENGTH) - 1]
    h = ((entropy.clamp(max=clip) - entropy.min()) / (clip - entropy.min())).clamp(0, 1)
    d = (value - value.min()) / (value.max() - value.min())
    expected = {
        "tip": h + d - h * d,
        "q3": value * (1 - h),
        "divergence": value,
        "bottom_entropy": 1 - h,
        "entropy": h / (h - noise.log()),
    }
    assert expected.keys() == set(SELECTORS)
    for by, score in expected.items():
        found = selection_score(entropy, value, by=by, noise=noise)
        torch.testing.assert_close(found, score, atol=1e-14, rtol=0)
    # Gumbel noise on log h ranks alike.
    gumbel = h.log() - (-noise.log()).log()
    assert torch.equal(expected["entropy"].argsort(stable=True), gumbel.argsort(stable=True))


@pytest.mark.parametrize("by", SELECTORS)
@pytest.mark.parametrize("clip", [None, 0.9])
def test_micro_batches_and_ranks_keep_the_same_tokens(by, clip):
    entropy, value, ends = gammas(1)
    ids = ids_of(ends)
    seeds = rollout_seeds(ids, ends)
    batch = int(seeds.sum())
    whole = {"by": by, "keep": 0.2, "extent": batch_range(entropy, value, clip_divergence=clip)}
    expected = select_tokens(entropy, value, ends, noise=token_noise(seeds, ends, len(ids), batch=batch), **whole)
    assert expected.sum() == ROLLOUTS * LENGTH // 5
    for rows in (1, 2, ROLLOUTS):
        for order in (range(ROLLOUTS), reversed(range(ROLLOUTS))):  # other ranks get other rollouts
            for part in torch.tensor(list(order)).split(rows):
                mine = torch.cat([torch.arange(LENGTH * i, LENGTH * (i + 1)) for i in part.tolist()])
                bounds = torch.arange(0, len(mine) + 1, LENGTH)
                noise = noise_of(ids[mine], bounds, batch)
                found = select_tokens(entropy[mine], value[mine], bounds, noise=noise, **whole)
                assert torch.equal(found, expected[mine])


@pytest.mark.parametrize("seed", range(5))
def test_one_outlier_leaves_tip_to_the_entropies_unless_it_is_clipped(seed):
    entropy, value, ends = gammas(seed)
    outlier = value.clone()
    outlier[1234] = 15.0
    half = torch.full_like(value, 0.5)
    for keep, more_than in ((0.5, 0.95), (0.2, 0.98)):

        def kept(values: torch.Tensor, clip: float | None, keep: float = keep) -> torch.Tensor:
            extent = batch_range(entropy, values, clip_divergence=clip)
            return select_tokens(entropy, values, ends, keep=keep, extent=extent)

        # Equal noise: the highest entropies, without sampling.
        by_entropy = select_tokens(entropy, value, ends, by="entropy", keep=keep, noise=half)
        assert agreement(kept(value, None), by_entropy) < 0.95
        assert agreement(kept(outlier, None), by_entropy) > more_than
        assert agreement(kept(outlier, 0.98), by_entropy) < 0.95
        # A quantile moves by one token of the batch.
        assert agreement(kept(outlier, 0.98), kept(value, 0.98)) > 0.995


def test_the_clip_is_a_value_of_the_batch():
    values = torch.arange(100.0).flip(0)
    assert batch_range(values, values).divergence_high == 99
    assert batch_range(values, values, clip_divergence=0.98).divergence_high == 97
    assert batch_range(values[:50], values[:50] - 50, clip_divergence=0.98).divergence_high == 48
    assert batch_range(values, values, clip_divergence=0.07).divergence_high == 6
    assert batch_range(values[:1], values[:1], clip_divergence=0.001).divergence_high == 99
    # Q3 ranks what is clipped by certainty alone.
    entropy, value = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([3.0, 9.0, 0.0, 0.0])
    for clip, best in ((None, 1), (0.75, 0)):
        extent = batch_range(entropy, value, clip_divergence=clip)
        assert selection_score(entropy, value, extent, by="q3").argmax() == best


def test_quadrants_are_by_the_medians_of_the_batch():
    entropy, value, ends = gammas(2)
    extent = batch_range(entropy, value)
    q3 = third_quadrant(entropy, value, extent)
    assert torch.equal(q3, (entropy < entropy.median()) & (value > value.median()))
    shares = {
        by: (select_tokens(entropy, value, ends, by=by, keep=0.2) * q3).sum() / (0.2 * len(value))
        for by in ("q3", "divergence", "tip", "bottom_entropy")
    }
    assert shares["q3"] > 0.6 > shares["divergence"] > shares["tip"], shares


def test_sampling_includes_tokens_in_proportion_to_their_entropy():
    h = torch.tensor([0.0, 0.05, 0.2, 0.35, 0.4, 1.0], dtype=torch.float64)
    entropy, rounds = 3 + 2 * h, 20_000
    ends = torch.tensor([0, len(h)])
    extent = batch_range(entropy, h)
    seeds = rollout_seeds(torch.arange(len(h)), ends)
    kept = torch.zeros(len(h))
    for batch in range(rounds):
        noise = token_noise(seeds, ends, len(h), batch=batch)
        kept += select_tokens(entropy, h, ends, by="entropy", keep=0.2, extent=extent, noise=noise)
    expected = h / h.sum()
    error = (expected * (1 - expected) / rounds).sqrt()
    assert kept[0] == 0 and kept.sum() == rounds
    assert ((kept / rounds - expected).abs() <= 4 * error).all(), (kept / rounds, expected)


def test_noise_is_uniform_and_independent_between_tokens_rollouts_and_batches():
    ends = torch.arange(0, 64 * 500 + 1, 500)
    noise = noise_of(ids_of(ends), ends).reshape(64, 500)
    other = noise_of(ids_of(ends), ends, batch=1).reshape(64, 500)
    assert noise.min() > 0 and noise.max() < 1
    error = noise.numel() ** -0.5
    assert abs(noise.mean() - 0.5) < 4 * error / 12**0.5
    # Kolmogorov and Smirnov's distance from the uniform distribution.
    steps = torch.arange(1, noise.numel() + 1) / noise.numel()
    assert (noise.flatten().sort().values - steps).abs().max() < 1.95 * error
    pairs = [(noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise, other)]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert abs(correlation) < 4 * error


def test_noise_follows_the_ids_and_their_order_and_no_padding():
    ids, ends = torch.tensor([5, 6, 7, 5, 6, 7, 7, 6, 5, 1]), torch.tensor([0, 3, 6, 9])
    seeds = rollout_seeds(ids, ends)
    assert seeds[0] == seeds[1] != seeds[2]
    packed = token_noise(seeds, ends, len(ids))
    assert torch.equal(packed[:3], packed[3:6]) and not torch.equal(packed[:3], packed[6:9])
    padded = token_noise(seeds, torch.tensor([0, 5, 10, 15]), 15).reshape(3, 5)
    assert torch.equal(padded[:, :3].flatten(), packed[:9])
    assert rollout_seeds(ids[:0], torch.tensor([0])).shape == (0,)


@pytest.mark.parametrize("by", SELECTORS)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_token_is_kept_by_every_ranking(by, broken):
    entropy, value, ends = torch.tensor([4.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([0, 4])
    noise = torch.full((4,), 0.5)
    for one in (entropy, value):
        whole = one.clone()
        one[2] = broken
        assert select_tokens(entropy, value, ends, by=by, keep=0.25, noise=noise).tolist() == [0, 0, 1, 0]
        one.copy_(whole)


def test_a_token_of_no_entropy_comes_before_those_outside_the_mask():
    entropy, mask = torch.tensor([9.0, 0.0, 0.0, 1.0]), torch.tensor([0, 1, 1, 1])
    found = select_tokens(
        entropy, entropy, torch.tensor([0, 4]), by="entropy", keep=1.0, mask=mask, noise=torch.full((4,), 0.5)
    )
    assert found.tolist() == [0, 1, 1, 1]


def test_a_ranking_that_does_not_exist_or_lacks_noise_is_refused():
    three, ends = torch.ones(3), torch.tensor([0, 3])
    for message, more in {
        "selector 'best'": {"by": "best"},
        "needs noise": {"by": "entropy"},
        "noise of shape": {"by": "entropy", "noise": torch.ones(2)},
    }.items():
        with pytest.raises(ValueError, match=message):
            select_tokens(three, three, ends, **more)
    with pytest.raises(ValueError, match="clip_divergence 0"):
        batch_range(three, three, clip_divergence=0)
