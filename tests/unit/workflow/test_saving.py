"""Stages save by steps and minutes, keep two checkpoints, and resume from what is left of them."""

from __future__ import annotations

import pytest
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

from tests.support.workflow.runs import project
from verl_s2d.errors import UserError
from verl_s2d.workflow.store import checkpoints

STAGES = {"teacher_rl": "teacher-rl-1h", "warmup": "warmup-1h", "opd": "opd-1h", "student_rl": "student-rl-2h"}


def value(plan, stage: str, key: str) -> str:
    """verl keys that the command of a stage sets."""
    node = next(node for node in plan.order if node.name == STAGES[stage])
    (found,) = (
        word.partition("=")[2]
        for word in node.stage.command(node, plan.context, 1).argv
        if word.lstrip("+").startswith(f"{key}=")
    )
    return found


def limit_key(stage: str) -> str:
    return "trainer.max_ckpt_to_keep" if stage == "warmup" else "trainer.max_actor_ckpt_to_keep"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_that_trains_saves_by_the_clock_too_and_keeps_two_checkpoints(tmp_path, stage):
    plan = project(tmp_path)
    assert value(plan, stage, "s2d.save_minutes") == "30.0" and value(plan, stage, limit_key(stage)) == "2"
    other = project(tmp_path, **{f"stages__{stage}__save_minutes": 7.5})
    assert value(other, stage, "s2d.save_minutes") == "7.5"
    assert {node.digest for node in other.order} == {node.digest for node in plan.order}, "rebuilds nothing"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_an_alarm_may_stop_keeps_all_its_regular_checkpoints_and_has_no_others(tmp_path, stage):
    plan = project(tmp_path, **{f"stages__{stage}__alarms": {"not_finite": "stop"}})
    assert value(plan, stage, limit_key(stage)) == "null" and value(plan, stage, "s2d.save_minutes") == "null"


@pytest.mark.parametrize("stage", STAGES)
def test_the_recipe_s_own_number_of_checkpoints_wins_unless_one_would_be_too_few(tmp_path, stage):
    def plan(limit):
        verl = {"data.train_batch_size": 4, limit_key(stage): limit}
        return project(tmp_path, **{f"stages__{stage}__verl": verl, f"stages__{stage}__alarms": {"not_finite": "stop"}})

    assert value(plan(5), stage, limit_key(stage)) == "5" and value(plan(None), stage, limit_key(stage)) == "null"
    with pytest.raises(UserError, match="At least 2"):
        value(plan(1), stage, limit_key(stage))


class Manager(BaseCheckpointManager):
    """verl's own deletion, in the order of its save_checkpoint; `layout` is where the trainer keeps an actor's part."""

    def __init__(self, directory, layout):
        self.previous_saved_paths, self._directory, self._layout = [], directory, layout

    def save(self, step, *, killed=False):
        self.ensure_checkpoint_capacity(2)
        folder = self._directory / f"global_step_{step}"
        (folder / self._layout / "huggingface").mkdir(parents=True)
        (folder / self._layout / "huggingface" / "config.json").write_text("{}")
        if killed:
            return
        self.register_checkpoint(str(folder / self._layout), 2)
        (folder / "data.pt").write_bytes(b"loader")
        (self._directory / checkpoints.TRACKER).write_text(str(step))


@pytest.mark.parametrize("layout", ["actor", "."])
def test_two_checkpoints_are_left_by_verl_and_by_a_resume(tmp_path, layout):
    """RL trainers keep the actor below the step's directory, which verl leaves behind; the warmup's is the step's."""

    def whole():
        return sorted(p.parents[1 if layout == "." else 2].name for p in tmp_path.rglob("huggingface/config.json"))

    first = Manager(tmp_path, layout)
    for step in (1, 2, 3):
        first.save(step)
    first.save(4, killed=True)
    assert whole() == ["global_step_3", "global_step_4"] and checkpoints.completed_step(tmp_path) == 3
    checkpoints.repair(tmp_path)
    checkpoints.thin_out(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.glob("global_step_*")) == ["global_step_3"], "4 was never finished"
    resumed = Manager(tmp_path, layout)
    for step in (4, 5, 6):
        resumed.save(step)
    assert whole() == ["global_step_3", "global_step_5", "global_step_6"], "verl does not count the first"
    checkpoints.thin_out(tmp_path, None)
    assert len(whole()) == 3, "all are to be kept"
    checkpoints.thin_out(tmp_path, 2)
    assert whole() == ["global_step_5", "global_step_6"] and checkpoints.completed_step(tmp_path) == 6
