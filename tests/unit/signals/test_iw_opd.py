"""IW-OPD's weights against a plain reference in float64: where they start and end, and which tokens count."""

from __future__ import annotations

import pytest
import torch

from verl_s2d.objectives.opd import clip_advantages, position_weights
from verl_s2d.signals.iw_opd import IwOpd
from verl_s2d.signals.sampled import Sampled


def log_probs(seed: int, *shape: int) -> torch.Tensor:
    return -3 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(teacher: list[float], old: list[float], mask: list[int], top: float) -> list[float]:
    """One response, token by token."""
    sizes = [abs(t - o) if m else 0.0 for t, o, m in zip(teacher, old, mask, strict=True)]
    weights, behind = [], 0.0
    for size, counts in zip(sizes, mask, strict=True):
        weights.append(1 + (top - 1) * (1 - behind / sum(sizes)) if counts else 0.0)
        behind += size
    return weights


MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("top", [1.2, 1.5, 3.0])
def test_weights_are_those_of_the_formula(top):
    teacher, old = log_probs(0, *MASK.shape), log_probs(1, *MASK.shape)
    found = position_weights(teacher, old, MASK, max_weight=top)
    rows = zip(teacher.tolist(), old.tolist(), MASK.tolist(), strict=True)
    expected = torch.tensor([reference(*row, top) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected.float(), atol=1e-7, rtol=0)
    assert (found[:, 0] == top).all() and (found[~MASK.bool()] == 0).all() and found[MASK.bool()].min() > 1
    assert found.dtype == torch.float32

    signal = IwOpd(beta=0.5, max_weight=top).advantages(old, {"teacher": teacher}, MASK)
    torch.testing.assert_close(signal, (expected * 0.5 * (teacher - old)).float(), atol=1e-6, rtol=0)


def test_equal_distances_fall_on_a_line():
    old = log_probs(2, 1, 5)
    signs = torch.tensor([[1, -1, -1, 1, -1]])
    found = position_weights(old + 0.5 * signs, old, torch.ones(1, 5))
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.4, 1.3, 1.2, 1.1]]))


def test_policies_that_agree_have_weights_of_one_and_no_advantage():
    old, mask = log_probs(3, 2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.equal(position_weights(old, old, mask), mask.float())
    assert torch.equal(IwOpd().advantages(old, {"teacher": old}, mask), torch.zeros(2, 4))
    # After the last difference, too.
    teacher = old.clone()
    teacher[:, 0] -= 1
    assert torch.equal(position_weights(teacher, old, mask)[:, 1:], mask[:, 1:].float())


def test_a_response_is_weighed_alone_and_what_is_outside_the_mask_is_not_read():
    teacher, old = log_probs(4, *MASK.shape), log_probs(5, *MASK.shape)
    for log_prob in (teacher, old):
        log_prob[~MASK.bool()] = torch.nan
    whole = IwOpd().advantages(old, {"teacher": teacher}, MASK)
    assert whole.isfinite().all()
    for row, length in enumerate((6, 6, 3, 1)):
        alone = (slice(row, row + 1), slice(length))
        found = IwOpd().advantages(old[alone], {"teacher": teacher[alone]}, MASK[alone])
        assert torch.equal(found, whole[alone])


def test_whitening_comes_before_the_weights_and_clipping_after():
    teacher, old = log_probs(6, *MASK.shape), log_probs(7, *MASK.shape)
    frozen, weights = {"teacher": teacher}, position_weights(teacher, old, MASK)
    found = IwOpd(whiten=True).advantages(old, frozen, MASK)
    torch.testing.assert_close(found, weights * Sampled(whiten=True).advantages(old, frozen, MASK), atol=0, rtol=0)
    # At the first token a limit of 1 cuts an advantage of 0.8, times 1.5.
    frozen = {"teacher": old - 0.8}
    clipped, share = clip_advantages(IwOpd().advantages(old, frozen, MASK), MASK, 1.0)
    assert (clipped[:, 0] == -1).all() and (clipped.abs() <= 1).all() and 0 < share < 1


def test_weights_carry_no_gradient():
    teacher, old = log_probs(8, 2, 3), log_probs(9, 2, 3).requires_grad_()
    assert not IwOpd().advantages(old, {"teacher": teacher}, torch.ones(2, 3)).requires_grad


def test_a_long_response_keeps_its_precision():
    """A prefix sum in float32 would err after tens of thousands of tokens."""
    teacher, old = log_probs(10, 1, 60_000), log_probs(11, 1, 60_000)
    found = position_weights(teacher.float(), old.float(), torch.ones(1, 60_000))
    sizes = (teacher.float().double() - old.float().double()).abs()
    expected = 1.5 - 0.5 * (sizes.cumsum(-1) - sizes) / sizes.sum()
    torch.testing.assert_close(found, expected.float(), atol=2e-7, rtol=0)
    assert found.min() >= 1


def test_the_weights_of_response_tokens_are_logged():
    teacher, student = torch.tensor([[-1.0, -3.0, -2.0], [-1.0, -1.0, 0.0]]), torch.zeros(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    weights = position_weights(teacher, student, mask, max_weight=2.0)[mask.bool()]
    found = IwOpd(max_weight=2.0).measured(student, {"teacher": teacher}, mask)
    assert found["position_weight_max"] == 2 and found["position_weight_min"] == pytest.approx(float(weights.min()))
    assert found["position_weight_mean"] == pytest.approx(float(weights.mean()))
    assert IwOpd().measured(student, {"teacher": teacher}, torch.zeros(2, 3)) == {}
