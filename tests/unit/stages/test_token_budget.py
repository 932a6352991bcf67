"""Check the refusals of a token budget, and its count of reported rollouts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module

from tests.support.tiny_verl import composed
from verl_s2d.errors import UserError
from verl_s2d.stages.shared import budget
from verl_s2d.stages.shared.save_on_request import SavesOnRequest
from verl_s2d.stages.shared.token_budget import SAMPLED_TOKENS, StopsAtTokenBudget, read_token_budget
from verl_s2d.workflow import save_request


def test_no_budget_is_none_and_a_plan_may_leave_it_open():
    assert read_token_budget(composed()) is None
    assert read_token_budget(composed("+s2d.token_budget=null")) is None
    assert read_token_budget(composed("+s2d.token_budget=7")) == 7


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.token_budget=0"], "s2d.token_budget"),
        (["+s2d.token_budget=1.5"], "s2d.token_budget"),
        (["+s2d.token_budget=true"], "s2d.token_budget"),
        (["+s2d.token_budget=9", "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine"], "lr_scheduler_type"),
        (
            ["+s2d.token_budget=null", "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1"],
            "lr_warmup_steps_ratio",
        ),
    ],
)
def test_refused(changes, key):
    with pytest.raises(UserError, match="remedy") as caught:
        read_token_budget(composed(*changes))
    assert key in caught.value.key


def test_megatrons_schedule_is_refused_too():
    key = "actor_rollout_ref.actor.optim.lr_decay_style"
    with initialize_config_module("verl.trainer.config", version_base=None):
        constant, cosine = (
            compose("ppo_trainer", ["model_engine=megatron", "+s2d.token_budget=9", f"{key}={style}"])
            for style in ("constant", "cosine")
        )
    assert read_token_budget(constant) == 9
    with pytest.raises(UserError, match="lr_decay_style"):
        read_token_budget(cosine)


def test_trainer_and_workflow_agree_about_the_file():
    assert SAMPLED_TOKENS == budget.SAMPLED_TOKENS


class Trainer:
    """As far as the mixin can see, verl's trainer; its loop is that of `fit`."""

    def __init__(self, config):
        self.config, self.total_training_steps, self.global_steps = config, 20, 0
        self.saved = []
        self._load_checkpoint()

    def fit(self, lengths):
        self.global_steps += 1
        while self.global_steps <= self.total_training_steps:
            last = self.global_steps >= self.total_training_steps
            self.rollout = lengths[self.global_steps - 1]
            self.step({}, {})
            if last or self.global_steps % self.config.trainer.save_freq == 0:
                self._save_checkpoint()
            self.on_step_end()
            self.global_steps += 1
        return self.global_steps - 1

    def step(self, metrics, timing_raw):
        tags = [{"response_len": n} for n in self.rollout] + [{"response_len": 99, "is_padding": True}]
        return SimpleNamespace(tags=tags)

    def on_step_end(self):
        pass

    def _save_checkpoint(self):
        self.saved.append(self.global_steps)
        tracker = f"{self.config.trainer.default_local_dir}/latest"
        with open(tracker, "w") as stream:
            stream.write(str(self.global_steps))

    def _load_checkpoint(self):
        try:
            with open(f"{self.config.trainer.default_local_dir}/latest") as stream:
                self.global_steps = int(stream.read())
        except OSError:
            pass


class Budgeted(SavesOnRequest, StopsAtTokenBudget, Trainer):
    pass


LENGTHS = [[3, 4], [5, 5], [1, 1], [9, 9], [2, 2]] * 4
"""Sums 7, 17, 19, 37, 41."""


@pytest.mark.parametrize(("tokens", "last", "saved"), [(7, 1, [1]), (8, 2, [2]), (19, 3, [2, 3]), (20, 4, [2, 4])])
def test_it_ends_with_the_first_step_at_or_past_the_budget_and_saves_it_once(tmp_path, tokens, last, saved):
    config = composed(f"+s2d.token_budget={tokens}", "trainer.save_freq=2", f"trainer.default_local_dir={tmp_path}")
    trainer = Budgeted(config)
    assert trainer.fit(LENGTHS) == last and trainer.saved == saved
    written = json.loads((tmp_path / f"global_step_{last}" / SAMPLED_TOKENS).read_text())["sampled_tokens"]
    assert written == trainer.sampled_tokens >= tokens
    again = Budgeted(config)
    assert again.fit(LENGTHS) == last and again.saved == [], "a stage that was finished trains nothing"


def test_a_resumed_stage_stops_where_it_would_have_stopped(tmp_path):
    def config(tokens):
        chosen = (f"+s2d.token_budget={tokens}", "trainer.save_freq=2", f"trainer.default_local_dir={tmp_path}")
        return composed(*chosen)

    assert Budgeted(config(8)).fit(LENGTHS) == 2
    resumed = Budgeted(config(38))
    assert resumed.sampled_tokens == 17 and resumed.fit(LENGTHS) == 5 and resumed.sampled_tokens == 41


@pytest.mark.parametrize(("asked_in", "saved"), [(3, [2, 3]), (4, [2, 4])])
def test_asked_to_save_and_stop_it_saves_the_step_that_it_is_in_once(tmp_path, asked_in, saved):
    class Asked(Budgeted):
        def step(self, metrics, timing_raw):
            if self.global_steps == asked_in:
                save_request.ask(tmp_path)
            return super().step(metrics, timing_raw)

    config = composed("trainer.save_freq=2", f"trainer.default_local_dir={tmp_path}")
    trainer = Asked(config)
    assert trainer.fit(LENGTHS) == asked_in and trainer.saved == saved
    save_request.withdraw(tmp_path)
    assert Budgeted(config).fit(LENGTHS) == 20


def test_a_step_that_ends_long_after_the_last_checkpoint_is_saved_once(tmp_path, monkeypatch):
    """Ten minutes a step, checkpoints every 4 steps and at least every 25 minutes: the clock restarts with each."""
    now = [0.0]
    monkeypatch.setattr("verl_s2d.stages.shared.save_on_request.time.monotonic", lambda: now[0])

    class Slow(Budgeted):
        def step(self, metrics, timing_raw):
            now[0] += 600
            return super().step(metrics, timing_raw)

    def saved(minutes, budget=None):
        directory = tmp_path / f"{minutes}-{budget}"
        directory.mkdir()
        config = composed(
            "trainer.save_freq=4",
            f"trainer.default_local_dir={directory}",
            f"+s2d.save_minutes={minutes}",
            *([] if budget is None else [f"+s2d.token_budget={budget}"]),
        )
        trainer = Slow(config)
        trainer.total_training_steps = 10
        trainer.fit(LENGTHS)
        return trainer.saved

    assert saved(25) == [3, 4, 7, 8, 10]
    assert saved("null") == [4, 8, 10]
    assert saved(40) == [4, 8, 10], "verl has saved by then"
    assert saved(25, budget=18) == [3], "the step that reaches the budget is saved once, by the clock"


@pytest.mark.parametrize("minutes", ["-1", "often", "true"])
def test_minutes_that_are_none_are_refused(tmp_path, minutes):
    with pytest.raises(UserError) as error:
        Budgeted(composed(f"+s2d.save_minutes={minutes}", f"trainer.default_local_dir={tmp_path}"))
    assert error.value.key == "s2d.save_minutes"


def test_without_a_budget_nothing_changes(tmp_path):
    trainer = Budgeted(composed("trainer.save_freq=5", f"trainer.default_local_dir={tmp_path}"))
    assert trainer.fit(LENGTHS) == 20 and trainer.saved == [5, 10, 15, 20] and not list(tmp_path.glob("global_step*"))
