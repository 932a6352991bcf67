"""The controls of on-policy distillation: no teacher, and a teacher whose advantages are on the wrong tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_s2d.errors import UserError
from verl_s2d.objectives.opd import discouraged_tokens
from verl_s2d.signals.no_teacher import NoTeacher
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.shuffled import Shuffled
from verl_s2d.signals.signal_registry import read_signal


def batch(seed: int, rows: int = 4, length: int = 25):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (-3 * torch.rand(rows, length, generator=generator) for _ in range(2))
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return student, teacher, (torch.arange(length) < lengths).long(), 4 * torch.rand(rows, length, generator=generator)


def reference(log_probs, entropies, mask, share):
    """The formula, token by token in Python's floats."""
    tokens = [(r, t) for r in range(len(mask)) for t in range(mask.shape[1]) if mask[r, t]]
    lowest = sorted(tokens, key=lambda at: log_probs[at].item())[: math.floor(share * len(tokens))]
    expected = torch.zeros(mask.shape, dtype=torch.float64)
    if lowest:
        values = [entropies[at].item() for at in lowest]
        extent = max(values) - min(values)
        for at in lowest:
            expected[at] = -0.5 - ((entropies[at].item() - min(values)) / (2 * extent) if extent else 0)
    return expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_advantages_without_a_teacher_are_those_of_the_formula(seed, share):
    student, _, mask, entropies = batch(seed)
    found = discouraged_tokens(student, entropies, mask, share=share)
    torch.testing.assert_close(found.double(), reference(student, entropies, mask, share), atol=1e-6, rtol=0)


def test_exactly_a_fifth_of_the_tokens_lies_between_the_bounds_and_they_are_the_least_likely():
    student, _, mask, entropies = batch(1)
    signal = NoTeacher()
    found = signal.advantages(student, {}, mask, fields={"entropy": entropies})
    touched = found != 0
    assert int(touched.sum()) == int(0.2 * int(mask.sum())) > 0
    assert found[touched].min() == -1 and found[touched].max() == -0.5
    kept = mask.bool() & ~touched
    assert student[touched].max() <= student[kept].min()
    assert not touched[~mask.bool()].any()


def test_equal_entropies_give_one_half_and_what_is_outside_the_mask_is_not_read():
    student, _, mask, entropies = batch(2)
    found = discouraged_tokens(student, torch.ones_like(entropies), mask, share=0.5)
    assert set(found[found != 0].tolist()) == {-0.5}
    outside = ~mask.bool()
    changed = [values.masked_fill(outside, float("nan")) for values in (student, entropies)]
    assert torch.equal(
        discouraged_tokens(*changed, mask, share=0.5), discouraged_tokens(student, entropies, mask, share=0.5)
    )


def test_no_response_and_too_few_tokens_change_nothing():
    student, _, mask, entropies = batch(3)
    assert not discouraged_tokens(student, entropies, torch.zeros_like(mask), share=0.5).any()
    first = torch.zeros_like(mask)
    first[0, :4] = 1
    assert not discouraged_tokens(student, entropies, first, share=0.2).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_shuffled_teacher_gives_the_same_advantages_to_other_tokens(seed):
    student, teacher, mask, _ = batch(seed, rows=6)
    plain = Sampled(beta=0.5).advantages(student, {"teacher": teacher}, mask)
    shuffled = Shuffled(beta=0.5).advantages(student, {"teacher": teacher}, mask)
    chosen = mask.bool()
    assert torch.equal(plain[chosen].sort().values, shuffled[chosen].sort().values)
    assert not shuffled[~chosen].any()
    assert torch.equal(shuffled, Shuffled(beta=0.5).advantages(student, {"teacher": teacher}, mask))


def test_shuffling_leaves_no_correlation_with_the_teacher():
    student, teacher, mask, _ = batch(5, rows=64, length=200)
    chosen = mask.bool()
    plain = Sampled().advantages(student, {"teacher": teacher}, mask)[chosen]
    shuffled = Shuffled().advantages(student, {"teacher": teacher}, mask)[chosen]
    correlation = torch.corrcoef(torch.stack((plain, shuffled)))[0, 1].abs()
    assert correlation < 5 / math.sqrt(len(plain))
    other = Shuffled().advantages(student - 0.01, {"teacher": teacher - 0.01}, mask)[chosen]
    assert not torch.equal(other, shuffled), "another batch gets another order"


def test_a_model_for_a_signal_that_asks_none_and_a_share_of_none_are_refused():
    from verl_s2d.stages.opd.config import read_opd_settings

    with pytest.raises(UserError, match=r"s2d\.teacher"):
        read_opd_settings({"signal": {"type": "no_teacher"}, "teacher": {"path": "model"}})
    assert read_opd_settings({"signal": {"type": "no_teacher"}}).models == {}
    with pytest.raises(UserError, match="tokens"):
        read_signal({"type": "no_teacher", "tokens": 0}, default="", key="signal")
