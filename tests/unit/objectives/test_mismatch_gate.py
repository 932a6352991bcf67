"""Tokens whose two engines disagree are left out, others are weighed by the ratio."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.tiny_verl import composed
from verl_s2d.errors import UserError
from verl_s2d.objectives.opd import mismatch_gate
from verl_s2d.stages.opd.config import read_opd_config

LOG_PROBS = arrays("float32", (3, 5), elements=st.floats(-20, 0, width=32))


@given(LOG_PROBS, LOG_PROBS, arrays("int64", (3, 5), elements=st.integers(0, 1)))
def test_factors_are_the_ratio_inside_the_bounds_and_zero_elsewhere(old, sampler, mask):
    factors, share = mismatch_gate(*map(torch.from_numpy, (old, sampler, mask)), 0.5, 5.0)
    left_out = 0
    for place in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        row, column = place
        ratio = math.exp(float(old[row, column]) - float(sampler[row, column]))
        inside = 0.5 <= ratio <= 5 and mask[row, column]
        assert factors[row, column].item() == pytest.approx(ratio if inside else 0.0, rel=1e-6)
        left_out += bool(mask[row, column]) and not inside
    assert share == pytest.approx(left_out / max(1, int(mask.sum())))


def test_engines_that_agree_change_nothing():
    log_probs = -torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    factors, share = mismatch_gate(log_probs, log_probs.clone(), torch.ones(4, 6), 0.5, 5.0)
    assert torch.equal(factors, torch.ones(4, 6)) and share == 0


def test_gradients_do_not_flow_through_the_gate():
    old = torch.zeros(1, 2, requires_grad=True)
    assert not mismatch_gate(old, torch.zeros(1, 2), torch.ones(1, 2), 0.5, 5.0)[0].requires_grad


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.signal.gate=[0.5]"], "s2d.signal.gate"),
        (["+s2d.signal.gate=[1.5,5]"], "s2d.signal.gate"),
        (["+s2d.signal.gate=[0.5,1]"], "s2d.signal.gate"),
        (["+s2d.signal.gate=[0,5]"], "s2d.signal.gate[0]"),
        (["+s2d.signal.gate=[0.5,5]", "+s2d.signal.type=reverse_kl"], "s2d.signal.gate"),
        (["+s2d.signal.gate=[0.5,5]", "actor_rollout_ref.rollout.calculate_log_probs=false"], "s2d.signal.gate"),
        (["+s2d.signal.gate=[0.5,5]", "algorithm.rollout_correction.bypass_mode=true"], "s2d.signal.gate"),
        (["+s2d.signal.gate=[0.5,5]", "algorithm.rollout_correction.rollout_is=token"], "s2d.signal.gate"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(changes, key):
    with pytest.raises(UserError) as caught:
        read_opd_config(composed(*changes))
    assert caught.value.key == key and caught.value.remedy


def test_a_gate_is_read_and_written_only_where_it_is_set():
    gated = read_opd_config(composed("+s2d.signal.gate=[0.5,5]")).signal
    assert gated.gate == [0.5, 5.0] and gated.model_dump()["gate"] == [0.5, 5.0]
    assert "gate" not in read_opd_config(composed()).signal.model_dump()
