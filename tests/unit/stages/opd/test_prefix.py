"""The prefix curriculum of stage 2b: lengths by step, what reaches the engine, what is logged, what is refused."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from tests.support.tiny_verl import composed
from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.metrics.detectors import Detectors
from verl_s2d.recipe.alarm_settings import Alarms
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.stage_settings import Prefix
from verl_s2d.stages.opd.config import read_opd_config, read_opd_settings
from verl_s2d.stages.opd.prefix_agent_loop import PrefixAgentLoop
from verl_s2d.stages.opd.prefix_rollouts import GrowsPrefix
from verl_s2d.stages.opd.stage import Opd
from verl_s2d.stages.planning import make_plan

PREFIX = ("+s2d.prefix.start=2", "+s2d.prefix.grow=3")


def test_lengths_by_step():
    assert [Prefix(start=2, grow=3).tokens(step) for step in (1, 2, 3)] == [2, 5, 8]
    assert [Prefix(start=2, grow=3, every=2).tokens(step) for step in (1, 2, 3, 4, 5)] == [2, 2, 5, 5, 8]


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 20), st.integers(1, 1000))
def test_a_length_follows_from_the_step_alone_and_never_falls(start, grow, every, step):
    prefix = Prefix(start=start, grow=grow, every=every)
    assert prefix.tokens(1) == start
    assert prefix.tokens(step + every) - prefix.tokens(step) == grow
    assert prefix.tokens(step) <= prefix.tokens(step + 1)


def test_a_command_is_read_and_written_again():
    config = read_opd_config(composed(*PREFIX))
    assert config.prefix == Prefix(start=2, grow=3, every=1)
    assert read_opd_settings(config.written()) == config


def test_the_cost_is_bounded_by_the_prefixes(tmp_path):
    """Four steps of two, three, four and four tokens instead of four times four."""
    means = {}
    for name, prefix in (("whole", None), ("growing", {"start": 2, "grow": 1})):
        recipe = load_recipe(write_project(tmp_path / name, stages__opd__prefix=prefix))
        plan = make_plan(recipe, run_dir=tmp_path / name / "run", rows=["opd-only"])
        (opd,) = (node for node in plan.order if isinstance(node.stage, Opd))
        means[name] = opd.stage.mean_response_tokens(opd)
    assert means == {"whole": 4, "growing": 13 / 4}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.prefix.start=8", "+s2d.prefix.grow=1"], "s2d.prefix.start"),
        (["+s2d.prefix.start=0", "+s2d.prefix.grow=1"], "s2d.prefix.start"),
        (["+s2d.prefix.start=2", "+s2d.prefix.grow=0"], "s2d.prefix.grow"),
        (["+s2d.prefix.start=2"], "s2d.prefix.grow"),
        ([*PREFIX, "+s2d.prefix.tokens=1"], "s2d.prefix.tokens"),
        (
            [*PREFIX, "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"],
            "actor_rollout_ref.rollout.agent.default_agent_loop",
        ),
        ([*PREFIX, "actor_rollout_ref.rollout.name=trtllm"], "actor_rollout_ref.rollout.name"),
    ],
)
def test_a_prefix_that_nothing_would_keep_to_is_refused(changes, key):
    with pytest.raises(UserError) as refused:
        read_opd_config(composed(*changes))
    assert refused.value.key == key and refused.value.remedy


class Loop(PrefixAgentLoop):
    """The agent loop without tokenizer and server."""

    def __init__(self):
        self.config = OmegaConf.create({"s2d": {"prefix": {"start": 2, "grow": 3, "every": 1}}})
        self.response_length = 6


@pytest.mark.parametrize(("step", "tokens"), [(1, 2), (2, 5), (3, 6), (100, 6)])
def test_the_engine_is_asked_for_no_more_tokens(monkeypatch, step, tokens):
    asked = {}

    async def run(self, sampling_params, **kwargs):
        asked.update(sampling_params, **kwargs)

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    shared = {"temperature": 1.0}
    asyncio.run(Loop().run(shared, global_steps=step, raw_prompt=[]))
    assert asked["max_tokens"] == tokens and asked["temperature"] == 1.0 and asked["global_steps"] == step
    assert shared == {"temperature": 1.0}, "rollouts of a batch share the dict"


def test_responses_cut_at_the_prefix_raise_no_alarm():
    """Every response ends at the prefix, in all steps before the one that reaches the maximum."""
    alarms = {
        name: alarm for name, alarm in Alarms().model_dump().items() if name in ("length_explosion", "truncation")
    }
    prefix, longest = Prefix(start=256, grow=256), 10_240
    lengths = [prefix.tokens(step) for step in range(1, 40)]
    assert lengths[-1] < longest == prefix.tokens(40)
    detectors = Detectors(Opd.metrics, alarms, longest)
    for step, tokens in enumerate(lengths, 1):
        data = {"response_length/mean": tokens, "response_length/max": tokens, "response_length/clip_ratio": 1.0}
        assert not detectors.feed(step, data)


class Trainer(GrowsPrefix, PPOTrainerSync):
    """The mixin on verl's trainer without workers."""

    def __init__(self, config):
        self.config, self.s2d = config, read_opd_config(config)


@pytest.mark.parametrize(
    ("changes", "step", "logged"),
    [
        (PREFIX, 1, {"s2d/prefix_tokens": 2}),
        (PREFIX, 3, {"s2d/prefix_tokens": 8}),
        (PREFIX, 9, {"s2d/prefix_tokens": 8}),
        ((), 1, {}),
    ],
)
def test_the_length_is_logged(monkeypatch, changes, step, logged):
    monkeypatch.setattr(PPOTrainerSync, "_compute_metrics", lambda *arguments: None)
    metrics = {}
    Trainer(composed(*changes))._compute_metrics(None, metrics, {}, step, 0)
    assert metrics == logged
