"""Trackers of a recipe: one project, a run for every stage, and what a stage says of itself goes first."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import settings, write_project
from verl_s2d.checks.software import check_trackers
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

TRAINED = ("teacher-rl-1h", "warmup-1h", "opd-1h", "student-rl-2h")


def plan_of(tmp_path, **changes):
    recipe = load_recipe(write_project(tmp_path, rows=["half-split"], **changes))
    return make_plan(recipe, run_dir=tmp_path / "run")


def commands(plan):
    """Name of a stage -> its hydra arguments, and its environment."""
    found = {node.name: node.stage.command(node, plan.context, 1) for node in plan.order if node.stage.trains}
    return {name: (dict(a.split("=", 1) for a in c.argv if "=" in a), c.env) for name, c in found.items()}


def test_every_training_stage_is_a_run_of_one_project(tmp_path):
    plan = plan_of(tmp_path, logger=["tensorboard", "wandb"])
    found = commands(plan)
    assert set(found) == set(TRAINED)
    for name, (arguments, env) in found.items():
        assert arguments["trainer.logger"] == "[tensorboard,wandb,console,file]"
        assert (arguments["trainer.project_name"], arguments["trainer.experiment_name"]) == (plan.recipe.name, name)
        assert env["TENSORBOARD_DIR"] == str(plan.context.run_dir / "tensorboard" / name)
    through_ray = found["opd-1h"][0]["+ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR"]
    assert through_ray == found["opd-1h"][1]["TENSORBOARD_DIR"]


def test_a_stage_may_name_its_own(tmp_path):
    own = {"trainer.logger": "mlflow", "trainer.experiment_name": "mine"}
    plan = plan_of(tmp_path, logger=["wandb"], stages__opd__verl={**settings()["stages"]["opd"]["verl"], **own})
    arguments, env = commands(plan)["opd-1h"]
    assert arguments["trainer.logger"] == "[mlflow,wandb,console,file]"
    assert (arguments["trainer.project_name"], arguments["trainer.experiment_name"]) == (plan.recipe.name, "mine")
    assert "TENSORBOARD_DIR" not in env


def test_without_trackers_verl_is_told_nothing(tmp_path):
    for arguments, env in commands(plan_of(tmp_path)).values():
        assert arguments["trainer.logger"] == "[console,file]"
        assert not {"trainer.project_name", "trainer.experiment_name"} & arguments.keys()
        assert "TENSORBOARD_DIR" not in env


def test_trackers_rebuild_nothing(tmp_path):
    without = [node.digest for node in plan_of(tmp_path).order]
    assert [node.digest for node in plan_of(tmp_path, logger=["wandb"]).order] == without


def test_what_is_no_tracker_is_refused(tmp_path):
    with pytest.raises(UserError, match="logger") as caught:
        plan_of(tmp_path, logger=["tensorbord"])
    assert "tensorboard" in str(caught.value)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    check_trackers(["tensorboard"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb") as caught:
        check_trackers(["wandb", "mlflow"])
    assert "pip install mlflow" in str(caught.value)
