"""Check the refusals of `s2d.until`, and where a trainer ends, saves and resumes by its rules."""

from __future__ import annotations

import copy
import json
from functools import cache
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module

from tests.support.tiny_verl import composed
from verl_s2d.errors import UserError
from verl_s2d.recipe.until import Until
from verl_s2d.stages.ending.end_file import END, ended
from verl_s2d.stages.ending.ends_early import EndsEarly
from verl_s2d.stages.ending.until_config import read_until
from verl_s2d.stages.shared.save_on_request import SavesOnRequest
from verl_s2d.workflow import save_request

PLATEAU = "+s2d.until.plateau={of:validation,window:3}"


def test_no_rule_is_none_and_a_plan_may_leave_it_open():
    assert read_until(composed(), ()) is None
    assert read_until(composed("+s2d.until=null"), ()) is None
    assert read_until(composed("+s2d.until.sampled_tokens=null"), ()) is None
    assert read_until(composed("+s2d.until.sampled_tokens=7"), ()) == Until(sampled_tokens=7)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.until.sampled_tokens=0"], "s2d.until.sampled_tokens"),
        (["+s2d.until.sampled_tokens=1.5"], "s2d.until.sampled_tokens"),
        (["+s2d.until.sampled_tokens=true"], "s2d.until.sampled_tokens"),
        (["+s2d.until.travels=1"], "s2d.until.travels"),
        (["+s2d.until.travel=0.3"], "s2d.until.travel"),
        (["+s2d.until.plateau={of:divergence}"], "s2d.until.plateau.of"),
        ([PLATEAU], "s2d.until.plateau.of"),
        ([PLATEAU, "trainer.test_freq=5", "trainer.total_training_steps=15"], "s2d.until.plateau.window"),
        # 8 prompts of 4 responses of 8 tokens a step.
        (["+s2d.until.sampled_tokens=2561", "trainer.total_training_steps=10"], "s2d.until.sampled_tokens"),
        (
            ["+s2d.until.sampled_tokens=9", "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine"],
            "lr_scheduler_type",
        ),
        (
            ["+s2d.until.sampled_tokens=null", "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1"],
            "lr_warmup_steps_ratio",
        ),
    ],
)
def test_refused(changes, key):
    with pytest.raises(UserError, match="remedy") as caught:
        read_until(composed(*changes), ())
    assert key in caught.value.key


def test_rules_that_can_end_the_trainer():
    steps, tokens = "trainer.total_training_steps=16", "+s2d.until.sampled_tokens=4096"
    read_until(composed(PLATEAU, tokens, "trainer.test_freq=5", steps), ())
    divergence = "+s2d.until.plateau={of:divergence,window:15}"
    read_until(composed(divergence, "+s2d.until.travel=0.3", steps), ("travel", "divergence"))


def test_megatrons_schedule_is_refused_too():
    key = "actor_rollout_ref.actor.optim.lr_decay_style"
    with initialize_config_module("verl.trainer.config", version_base=None):
        constant, cosine = (
            compose("ppo_trainer", ["model_engine=megatron", "+s2d.until.sampled_tokens=9", f"{key}={style}"])
            for style in ("constant", "cosine")
        )
    assert read_until(constant, ()) == Until(sampled_tokens=9)
    with pytest.raises(UserError, match="lr_decay_style"):
        read_until(cosine, ())


class Killed(Exception):
    """The process is gone."""


class Trainer:
    """As far as the mixin can see, verl's trainer; its loop is that of `fit`.

    `kill` is the place (step, before) of a kill: before the step is saved, validated or logged.
    """

    scores: tuple[float, ...] = ()
    kill: tuple[int, str] | None = None

    def __init__(self, config):
        self.config, self.total_training_steps, self.global_steps = config, 20, 0
        self.saved, self.validated, self.asleep = [], [], 0
        self.checkpoint_manager = SimpleNamespace(sleep_replicas=self._sleep)
        self._load_checkpoint()

    def fit(self, lengths):
        trainer = self.config.trainer
        if trainer.val_before_train:
            self._validate()
        self.global_steps += 1
        while self.global_steps <= self.total_training_steps:
            last = self.global_steps >= self.total_training_steps
            self.rollout = lengths[self.global_steps - 1]
            self.step({}, {})
            self._lives("saved")
            if last or self.global_steps % trainer.save_freq == 0:
                self._save_checkpoint()
            self.on_step_end()
            self._lives("validated")
            if trainer.test_freq > 0 and (last or self.global_steps % trainer.test_freq == 0):
                self._validate()
            self._lives("logged")
            self.global_steps += 1
        return self.global_steps - 1

    def _lives(self, before):
        if self.kill == (self.global_steps, before):
            raise Killed

    def _sleep(self):
        self.asleep += 1

    def _validate(self):
        self.validated.append(self.global_steps)
        return {"val-core/held/acc/mean@4": self.scores[self.global_steps - 1], "val-aux/held/x": 9.0}

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


class Ruled(SavesOnRequest, EndsEarly, Trainer):
    pass


LENGTHS = [[3, 4], [5, 5], [1, 1], [9, 9], [2, 2]] * 4
"""Sums 7, 17, 19, 37, 41."""


@pytest.mark.parametrize(("tokens", "last", "saved"), [(7, 1, [1]), (8, 2, [2]), (19, 3, [2, 3]), (20, 4, [2, 4])])
def test_it_ends_with_the_first_step_at_or_past_the_budget_and_saves_it_once(tmp_path, tokens, last, saved):
    config = composed(
        f"+s2d.until.sampled_tokens={tokens}", "trainer.save_freq=2", f"trainer.default_local_dir={tmp_path}"
    )
    trainer = Ruled(config)
    assert trainer.fit(LENGTHS) == last and trainer.saved == saved
    state = json.loads((tmp_path / f"global_step_{last}" / END).read_text())
    assert state["sampled_tokens"] == sum(map(sum, LENGTHS[:last])) >= tokens
    assert state["reason"] == f"{state['sampled_tokens']} sampled tokens >= {tokens} at step {last}"
    again = Ruled(config)
    assert again.fit(LENGTHS) == last and again.saved == [], "a stage that was finished trains nothing"


def test_a_resumed_stage_stops_where_it_would_have_stopped(tmp_path):
    def config(tokens):
        chosen = (f"+s2d.until.sampled_tokens={tokens}", "trainer.save_freq=2", f"trainer.default_local_dir={tmp_path}")
        return composed(*chosen)

    killed = Ruled(config(38))
    killed.kill = (4, "saved")
    with pytest.raises(Killed):
        killed.fit(LENGTHS)
    assert killed.saved == [2]
    resumed = Ruled(config(38))
    assert resumed.fit(LENGTHS) == 5
    assert resumed._end_rule.state()["sampled_tokens"] == 41


@pytest.mark.parametrize(("asked_in", "saved"), [(3, [2, 3]), (4, [2, 4])])
def test_asked_to_save_and_stop_it_saves_the_step_that_it_is_in_once(tmp_path, asked_in, saved):
    class Asked(Ruled):
        def step(self, metrics, timing_raw):
            if self.global_steps == asked_in:
                save_request.ask(tmp_path)
            return super().step(metrics, timing_raw)

    config = composed("trainer.save_freq=2", f"trainer.default_local_dir={tmp_path}")
    trainer = Asked(config)
    assert trainer.fit(LENGTHS) == asked_in and trainer.saved == saved
    save_request.withdraw(tmp_path)
    assert Ruled(config).fit(LENGTHS) == 20


def test_a_step_that_ends_long_after_the_last_checkpoint_is_saved_once(tmp_path, monkeypatch):
    """Ten minutes a step, checkpoints every 4 steps and at least every 25 minutes: the clock restarts with each."""
    now = [0.0]
    monkeypatch.setattr("verl_s2d.stages.shared.save_on_request.time.monotonic", lambda: now[0])

    class Slow(Ruled):
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
            *([] if budget is None else [f"+s2d.until.sampled_tokens={budget}"]),
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
        Ruled(composed(f"+s2d.save_minutes={minutes}", f"trainer.default_local_dir={tmp_path}"))
    assert error.value.key == "s2d.save_minutes"


def test_without_a_budget_nothing_changes(tmp_path):
    trainer = Ruled(composed("trainer.save_freq=5", f"trainer.default_local_dir={tmp_path}"))
    assert trainer.fit(LENGTHS) == 20 and trainer.saved == [5, 10, 15, 20] and not list(tmp_path.glob("global_step*"))


SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, *[0.9] * 8)
"""Validated at every second step; they no longer rise at step 10: .5, .5, .5 at 6, 8 and 10."""


@cache
def validated_config():
    return composed(PLATEAU, "trainer.test_freq=2", "trainer.total_training_steps=20")


def ruled(directory, save_every, kill=None):
    config = copy.deepcopy(validated_config())
    config.trainer.save_freq, config.trainer.default_local_dir = save_every, str(directory)
    trainer = Ruled(config)
    trainer.scores, trainer.kill = SCORES, kill
    return trainer


@pytest.mark.parametrize("save_every", [3, 5])
def test_a_plateau_of_validation_saves_the_step_once_and_ends(tmp_path, save_every):
    """Step 10 is saved before its validation with 5, and by the rule with 3, when the rollout's engine sleeps."""
    trainer = ruled(tmp_path, save_every)
    assert trainer.fit(LENGTHS) == 10 and trainer.validated == [2, 4, 6, 8, 10]
    assert trainer.saved == [*range(save_every, 10, save_every), 10] and trainer.asleep == 1
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    step, reason = ended(tmp_path)
    assert step == 10 and reason.startswith("validation rises by 0 a step <= 1 x its standard error 0 over 3 values")
    again = ruled(tmp_path, save_every)
    assert again.fit(LENGTHS) == 10 and again.saved == [] and again.validated == []


@pytest.mark.parametrize("before", ["saved", "validated", "logged"])
@pytest.mark.parametrize("step", [1, 4, 6, 8, 10])
@pytest.mark.parametrize("save_every", [1, 2, 3])
def test_a_kill_at_any_moment_changes_neither_the_end_nor_what_it_rests_on(tmp_path, save_every, step, before):
    undisturbed = ruled(tmp_path / "undisturbed", save_every)
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "killed").mkdir()
    last = undisturbed.fit(LENGTHS)
    with pytest.raises(Killed):
        ruled(tmp_path / "killed", save_every, (step, before)).fit(LENGTHS)
    resumed = ruled(tmp_path / "killed", save_every)
    assert resumed.fit(LENGTHS) == last == 10
    states = [
        json.loads((tmp_path / name / f"global_step_{last}" / END).read_text()) for name in ("undisturbed", "killed")
    ]
    assert states[0] == states[1]


def test_a_validation_that_a_kill_has_lost_comes_before_the_next_step(tmp_path):
    with pytest.raises(Killed):
        ruled(tmp_path, 2, (10, "validated")).fit(LENGTHS)
    resumed = ruled(tmp_path, 2)
    assert resumed.fit(LENGTHS) == 10, "no step is trained any more"
    assert resumed.validated == [10] and resumed.saved == []
