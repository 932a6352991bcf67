"""ExOPD's cap on lambda: against the fixed point that two outcomes come to, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from verl_s2d.objectives.opd import capped_extrapolation
from verl_s2d.signals.exopd import ExOPD
from verl_s2d.stages.opd import trainer
from verl_s2d.stages.opd.config import read_opd_settings


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def cap(p: float, b: float, lam: float = 4.0, tau: float = 1e-3) -> float:
    found = capped_extrapolation(*(torch.tensor([[x]], dtype=torch.float64).log() for x in (p, b)), lam, tau)
    assert found.dtype == torch.float32
    return found.item()


def at_rest(p: float, b: float, advantage) -> float:
    """Follow the exact policy gradient of two outcomes to its end; return the first one's probability."""
    x = logit(b)
    for _ in range(200_000):
        s = 1 / (1 + math.exp(-x))
        slope = advantage(p, b, s) - advantage(1 - p, 1 - b, 1 - s)
        if abs(slope) < 1e-9:
            return s
        x += 0.5 * slope
    raise AssertionError("not at rest")


@pytest.mark.parametrize(("p", "b"), [(0.9, 0.5), (0.99, 0.5), (0.95, 0.9), (0.6, 0.1), (0.3, 0.01)])
@pytest.mark.parametrize("tau", [0.01, 1e-3])
def test_at_the_cap_two_outcomes_come_to_rest_with_just_the_floor(p, b, tau):
    lam = cap(p, b, 1e9, tau)
    if p >= 1 - tau:
        assert lam == 1
        return
    assert lam == pytest.approx((logit(1 - tau) - logit(b)) / (logit(p) - logit(b)), rel=1e-4)
    found = at_rest(p, b, lambda p, b, s: lam * math.log(p) + (1 - lam) * math.log(b) - math.log(s))
    assert 1 - found == pytest.approx(tau, rel=1e-3)


@pytest.mark.parametrize(("p", "b"), [(0.9, 0.5), (0.99, 0.5), (0.999, 0.9), (0.5, 0.9)])
def test_the_signal_leaves_at_least_the_floor_where_lambda_alone_does_not(p, b):
    """Each outcome has the lambda of its own probabilities."""
    tau, lam = 1e-3, 3.0
    plain = at_rest(p, b, lambda p, b, s: lam * math.log(p) + (1 - lam) * math.log(b) - math.log(s))
    signal = ExOPD(tail_floor=tau, **{"lambda": lam})

    def capped(p: float, b: float, s: float) -> float:
        frozen = {name: torch.tensor([[value]]).double().log() for name, value in (("teacher", p), ("base", b))}
        return signal.composed(frozen).item() - math.log(s)

    found = at_rest(p, b, lambda *args: round(capped(*args), 6))
    assert min(found, 1 - found) >= min(tau, 1 - p) * (1 - 1e-3)
    if p > b:
        assert 1 - plain < 1 - found <= 1 - p + 1e-6, "it still extrapolates, or stays with the teacher"
    else:
        assert plain < 0.1 < b and found > plain, "what the base gets right is not eroded"


def test_lambda_is_kept_where_it_is_safe_and_one_where_it_is_not():
    assert cap(0.6, 0.5, lam=1.25) == 1.25
    assert cap(0.99995, 0.9, tau=1e-4) == 1, "the teacher is beyond the floor itself"
    assert cap(0.4, 0.6) == cap(0.999, 0.9999, tau=1e-2) == 1, "the base finds it more likely"
    assert cap(0.5, 0.5, lam=1.25) == 1.25, "nothing to extrapolate"
    for p, b in ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        assert cap(p, b) == 1
    # The published table of the bound, for tau = 1e-4.
    for p, b, bound in ((0.999, 0.9, 1.49), (0.99, 0.5, 2.0), (0.9, 0.5, 4.2)):
        assert cap(p, b, lam=9, tau=1e-4) == pytest.approx(bound, abs=0.01)


def test_the_share_of_capped_tokens_is_over_response_tokens_and_logged(monkeypatch):
    teacher = torch.tensor([[0.9, 0.99, 0.2], [0.3, 0.5, 0.5]]).log()
    base = torch.tensor([[0.5, 0.5, 0.6], [0.2, 0.5, math.nan]]).log()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    signal = {"type": "exopd", "lambda": 1.5, "tail_floor": 5e-2}
    settings = read_opd_settings({"signal": signal, "models": {"base": {"path": "b"}, "teacher": {"path": "t"}}})
    # lambda_max: 1.34, below 1, p < b; 2.9 for the fourth.
    assert settings.signal.measured(base, {"teacher": teacher, "base": base}, mask) == {"capped_tokens": 0.75}
    assert ExOPD().measured(base, {"teacher": teacher, "base": base}, mask) == {}

    lengths = [3, 1]
    fields = {"response_mask": mask, "rm_scores": 0.0 * mask, "old_log_probs": teacher - 1}
    fields |= {"ref_log_prob": teacher, "s2d_log_prob_base": base}
    nested = {
        name: torch.nested.as_nested_tensor(
            [row[:n] for row, n in zip(rows, lengths, strict=True)], layout=torch.jagged
        )
        for name, rows in fields.items()
    }
    written = {}
    monkeypatch.setattr(trainer.tq, "kv_batch_get", lambda **_: TensorDict(nested, batch_size=2))
    monkeypatch.setattr(trainer.tq, "kv_batch_put", lambda fields, **_: written.update(fields))

    class Stub:
        s2d, _frozen = settings, settings.models
        config = OmegaConf.create({"algorithm": {"adv_estimator": "s2d_opd"}})
        _log_prob_fields = trainer.OpdTrainer._log_prob_fields
        _log_travel = trainer.OpdTrainer._log_travel

    class Batch(list):
        keys, partition_id = None, None

    metrics: dict[str, float] = {}
    trainer.OpdTrainer._compute_advantage(Stub(), Batch(lengths), metrics)
    assert metrics["s2d/capped_tokens"] == 0.75
    expected = settings.signal.advantages(teacher - 1, {"teacher": teacher, "base": base}, mask)
    torch.testing.assert_close(written["advantages"].to_padded_tensor(0.0), expected)
