"""The teacher that becomes the student: what is refused, when it is refreshed, and what a resumed stage starts with."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.support.tiny_verl import composed
from tests.support.workflow.project import write_project
from tests.support.workflow.refusal import refuse
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.opd.teacher_refresh import FOLDER, RefreshesTeacher
from verl_s2d.stages.planning import make_plan

OWN = ("actor_rollout_ref.model.path=teacher", "+s2d.teacher_refresh=2")


def test_the_refreshed_teacher_shares_no_engine_with_the_start():
    config = composed(*OWN, "+s2d.travel=true")
    found = read_opd_config(config)
    models = found.asked(config.actor_rollout_ref.model)
    assert found.apart == {"teacher"} and models["teacher"] == models["start"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.teacher_refresh=2", "actor_rollout_ref.model.path=another"], "s2d.teacher.path"),
        ([*OWN, "+s2d.teacher.placement=server"], "s2d.teacher.path"),
        ([*OWN, "actor_rollout_ref.actor.strategy=fsdp"], "actor_rollout_ref.actor.strategy"),
        ([*OWN, "actor_rollout_ref.ref.strategy=fsdp"], "actor_rollout_ref.actor.strategy"),
        (
            [*OWN, "actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=true"],
            "actor_rollout_ref.model.lora_rank",
        ),
        (["actor_rollout_ref.model.path=teacher", "+s2d.teacher_refresh=0"], "s2d.teacher_refresh"),
    ],
)
def test_a_teacher_that_cannot_become_the_student_is_refused(changes, key):
    with pytest.raises(UserError) as caught:
        read_opd_config(composed(*changes))
    assert caught.value.key == key and caught.value.remedy


class Workers:
    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        return lambda *folder: self.asked.append((name, *folder))


class Trainer:
    """verl's, as far as the mixin knows it."""

    def _update_actor(self, batch, metrics):
        return batch

    def _save_checkpoint(self):
        self.actor_rollout_wg.asked.append(("saved by verl",))

    def _load_checkpoint(self):
        self.global_steps = self.resumed


def trainer(directory, *, every=2, resumed=0, mode="auto"):
    class Refreshing(RefreshesTeacher, Trainer):
        pass

    made = Refreshing()
    made.s2d = OmegaConf.create({"teacher_refresh": every})
    settings = {"default_local_dir": str(directory), "resume_mode": mode, "resume_from_path": str(directory / "given")}
    made.config = OmegaConf.create({"trainer": settings})
    made.actor_rollout_wg, made.resumed, made.global_steps = Workers(), resumed, 0
    return made


def test_every_second_update_ends_with_a_refresh_and_a_checkpoint_holds_the_teacher(tmp_path):
    made = trainer(tmp_path)
    for step in range(1, 5):
        made.global_steps = step
        made._update_actor(None, {})
    assert made.actor_rollout_wg.asked == [("refresh_teacher",)] * 2
    made._save_checkpoint()
    folder = str(tmp_path / "global_step_4" / "actor" / FOLDER)
    # verl's save ends with the file that names the newest complete checkpoint.
    assert made.actor_rollout_wg.asked[2:] == [("save_teacher", folder), ("saved by verl",)]


def test_without_a_refresh_nothing_is_asked(tmp_path):
    made = trainer(tmp_path, every=None, resumed=4)
    made._load_checkpoint()
    made._update_actor(None, {})
    made._save_checkpoint()
    assert made.actor_rollout_wg.asked == [("saved by verl",)]


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_resumed_stage_goes_on_with_the_teacher_of_its_checkpoint(tmp_path, mode):
    made = trainer(tmp_path, resumed=3, mode=mode)
    folder = tmp_path / ("given" if mode == "resume_path" else "global_step_3") / "actor" / FOLDER
    with pytest.raises(UserError, match="holds no teacher"):
        made._load_checkpoint()
    folder.mkdir(parents=True)
    made._load_checkpoint()
    assert made.actor_rollout_wg.asked == [("load_teacher", str(folder))]


def test_a_stage_from_the_start_loads_none(tmp_path):
    made = trainer(tmp_path)
    made._load_checkpoint()
    assert made.actor_rollout_wg.asked == []


def test_a_recipe_refreshes_where_the_student_is_its_own_teacher(tmp_path):
    recipe = load_recipe(write_project(tmp_path, stages__opd__teacher_refresh=2))
    plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["self-teacher"])
    commands = [node.stage.command(node, plan.context, 1).argv for node in plan.order if "opd" in node.name]
    assert all("+s2d.teacher_refresh=2" in argv for argv in commands) and commands
    refuse(tmp_path, "stages.opd.teacher_refresh", "half-split", stages__opd__teacher_refresh=2)
