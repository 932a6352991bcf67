"""Signals by type or file, and the keys and roles that have no effect: refused with the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from verl_s2d.errors import UserError
from verl_s2d.signals.exact import JSD
from verl_s2d.signals.in_verl.advantage_estimator import s2d_opd
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal_registry import known_signals, read_signal
from verl_s2d.stages.opd.config import read_opd_settings
from verl_s2d.stages.warmup.config_checks import read_warmup_settings

SIGNALS = Path(__file__).parents[3] / "docs" / "signals.md"
MINE = """
import torch
from verl_s2d.objectives.logits import ComposedLogits
from verl_s2d.signals.exact import ReverseKL
from verl_s2d.signals.signal import AdvantageSignal, Ask, LossSignal, Signal


class Towards(AdvantageSignal):
    asks = {"expert": Ask.SAMPLED}
    weight: float = 1.0

    def advantages(self, student_log_probs, frozen, mask):
        return self.weight * torch.where(mask.bool(), frozen["expert"] - student_log_probs, 0.0)


class Average(ReverseKL):
    asks = {"teacher": Ask.FULL, "other": Ask.FULL}

    def teacher(self, frozen):
        return ComposedLogits((frozen["teacher"], frozen["other"]), (0.5, 0.5))


class Detached(AdvantageSignal):
    asks = {"teacher": Ask.FULL}

    def advantages(self, student_log_probs, frozen, mask):
        return mask


class Nothing(LossSignal):
    asks = {"teacher": Ask.TOP_K}


class Neither(Signal):
    pass
"""
TEACHER = {"teacher": {"path": "t"}}


@pytest.fixture
def mine(tmp_path):
    """file.py:Name -> as a type."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return lambda name: f"{path}:{name}"


def refused(read, section) -> UserError:
    with pytest.raises(UserError) as caught:
        read(section)
    assert caught.value.remedy
    return caught.value


def test_the_types_of_the_documented_table_are_those_there_are():
    table = SIGNALS.read_text().partition("| signal | frozen models |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(known_signals())
    assert all(signal.model_fields["type"].default == kind for kind, signal in known_signals().items())


def test_stages_have_signals_of_their_own_by_default_and_take_any_exact_one():
    assert read_opd_settings(TEACHER).signal.type == "sampled"
    assert read_warmup_settings(TEACHER).signal.type == "forward_kl"
    chosen = {"signal": {"type": "jsd", "beta": 0.3, "keep_tokens": 0.5}} | TEACHER
    for read in (read_opd_settings, read_warmup_settings):
        settings = read(chosen)
        assert settings.signal == JSD(beta=0.3, keep_tokens=0.5)
        assert read(settings.written()) == settings


def test_a_ranking_is_written_where_it_is_not_the_default():
    plain = JSD(keep_tokens=0.5)
    assert JSD(keep_tokens=0.5, keep_by="tip", clip_divergence=None) == plain
    assert plain.model_dump() == {"type": "jsd", "keep_tokens": 0.5, "beta": 0.5}
    chosen = {"signal": {"type": "jsd", "keep_tokens": 0.5, "keep_by": "q3", "clip_divergence": 0.98}} | TEACHER
    for read in (read_opd_settings, read_warmup_settings):
        settings = read(chosen)
        assert settings.signal == JSD(keep_tokens=0.5, keep_by="q3", clip_divergence=0.98) != plain
        assert settings.written()["signal"].items() >= chosen["signal"].items()
        assert read(settings.written()) == settings


def test_the_warmup_takes_no_advantage():
    error = refused(read_warmup_settings, {"signal": {"type": "sampled"}} | TEACHER)
    assert (error.key, error.value) == ("s2d.signal.type", "sampled") and "jsd" in error.remedy


def test_a_users_advantage_and_its_keys(mine):
    section = {"signal": {"type": mine("Towards"), "weight": 2, "clip": 3}, "models": {"expert": {"path": "e"}}}
    settings = read_opd_settings(section)
    assert settings.models["expert"].path == "e" and settings.signal.clip == 3 and not settings.exact
    again = read_opd_settings(settings.written()).signal
    expert, old, mask = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    advantages, returns = s2d_opd(
        torch.zeros(2, 3), mask, signal=again, old_log_probs=old, frozen_log_probs={"expert": expert}
    )
    assert torch.equal(advantages, 2 * torch.where(mask.bool(), expert - old, 0.0))
    assert torch.equal(advantages, returns)


def test_a_relative_path_is_one_that_a_worker_elsewhere_can_read(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = read_signal({"type": "mine.py:Average"}, default="", key="s2d.signal").model_dump()
    assert written["type"] == mine("Average")


@pytest.mark.parametrize(
    ("name", "words"),
    [("Detached", "teaches nothing"), ("Nothing", "TOP_K"), ("Neither", "no signal"), ("Absent", "no function")],
)
def test_what_is_no_signal_or_asks_what_it_is_not_given_is_refused(mine, name, words):
    error = refused(read_opd_settings, {"signal": {"type": mine(name)}} | TEACHER)
    assert error.key == "s2d.signal.type" and words in str(error)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ({"signal": {"keep_tokens": 0.5}}, "s2d.signal.keep_tokens", ("forward_kl", "reverse_kl", "jsd")),
        ({"signal": {"type": "jsd", "keep_by": "q3"}}, "s2d.signal.keep_by", ("q3", "Set keep_tokens")),
        ({"signal": {"type": "jsd", "keep_by": "tip"}}, "s2d.signal.keep_by", ("tip", "Set keep_tokens")),
        ({"signal": {"type": "jsd", "clip_divergence": 0.98}}, "s2d.signal.clip_divergence", ("Set keep_tokens",)),
        ({"signal": {"type": "iw_opd", "max_weight": 1.0}}, "s2d.signal.max_weight", ("too small", "More than 1")),
        ({"signal": {"max_weight": 1.5}}, "s2d.signal.max_weight", ("iw_opd",)),
        ({"signal": {"keep_by": "q3"}}, "s2d.signal.keep_by", ("forward_kl", "jsd")),
        *(
            (
                {"signal": {"type": "jsd", "keep_tokens": 0.5, "keep_by": by, "clip_divergence": 0.98}},
                "s2d.signal.clip_divergence",
                (by, "tip or q3"),
            )
            for by in ("entropy", "divergence", "bottom_entropy")
        ),
        (
            {"signal": {"type": "jsd", "keep_tokens": 0.5, "keep_by": "best"}},
            "s2d.signal.keep_by",
            ("tip, entropy, q3, divergence, bottom_entropy",),
        ),
        (
            {"signal": {"type": "jsd", "keep_tokens": 0.5, "clip_divergence": 1.0}},
            "s2d.signal.clip_divergence",
            ("Less than 1",),
        ),
        ({"signal": {"type": "jsd", "clip": 1}}, "s2d.signal.clip", ("sampled", "exopd")),
        ({"signal": {"type": "reverse_kl", "beta": 0.3}}, "s2d.signal.beta", ("sampled", "jsd")),
        ({"signal": {"lambda": 1.25}}, "s2d.signal.lambda", ("exopd", "exopd_exact")),
        ({"signal": {"type": "exopd"}}, "s2d.models.base.path", ("base",)),
        ({"chunk_tokens": 64}, "s2d.chunk_tokens", ("sampled", "jsd")),
        ({"health_top_k": 8}, "s2d.health_top_k", ("sampled", "jsd")),
        ({"materialise_logits": True}, "s2d.materialise_logits", ("sampled", "jsd")),
        ({"objective": "jsd"}, "s2d.objective", ("known keys: signal, models",)),
        ({"keep_tokens": 0.5}, "s2d.keep_tokens", ("s2d.signal.keep_tokens",)),
        ({"models": {"base": {"path": "b"}}}, "s2d.models.base", ("sampled", "teacher")),
        ({"models": {"teacher": {"path": "b"}}}, "s2d.teacher", ("twice",)),
    ],
)
def test_a_key_or_a_model_without_an_effect_is_refused_with_what_would_use_it(section, key, words):
    error = refused(read_opd_settings, TEACHER | section)
    assert error.key == key
    assert all(word in str(error) for word in words), error


def test_the_long_form_of_the_teacher_and_a_second_model():
    models = {"teacher": {"path": "t", "revision": "v2"}, "base": {"path": "b", "trust_remote_code": True}}
    # As the warmup's configuration has the short form.
    section = {"signal": {"type": "exopd"}, "models": models, "teacher": {"path": None, "trust_remote_code": False}}
    settings = read_opd_settings(section)
    assert list(settings.models) == ["teacher", "base"]
    assert settings.models["teacher"].revision == "v2" and settings.models["base"].trust_remote_code
    error = refused(read_opd_settings, section | {"models": {"base": {"path": "b"}}})
    assert error.key == "s2d.teacher.path"


def test_equal_models_are_one():
    both = {"signal": {"type": "exopd"}, "models": {"base": {"path": "t"}}} | TEACHER
    models = read_opd_settings(both).models
    assert models["teacher"] == models["base"] and len(set(models.values())) == 1


def test_a_signals_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Sampled().beta = 2
