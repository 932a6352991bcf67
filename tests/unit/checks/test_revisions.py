"""A revision of a hub model is loaded as the directory that the hub's cache has it in, or refused."""

from __future__ import annotations

import shutil

import pytest

from tests.support.workflow.project import write_model, write_project
from verl_s2d.checks import check_plan
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.stage import model_location

COMMIT = "a" * 40


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A model's snapshot in a hub cache laid out as huggingface_hub does, under the tag v2."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v2").write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT, weight=b"2")


def plan_of(tmp_path, revision):
    recipe = write_project(tmp_path, student={"model": "some/model", "revision": revision}, rows=["direct-grpo"])
    return make_plan(load_recipe(recipe), run_dir=tmp_path / "run")


@pytest.mark.parametrize("revision", ["v2", COMMIT])
def test_what_the_cache_has_whole_is_loaded_from_there(tmp_path, snapshot, revision):
    plan = plan_of(tmp_path, revision)
    check_plan(plan)
    grpo = next(node for node in plan.order if "model" in node.externals and node.stage.trains)
    assert model_location(grpo, "model", plan.context) == str(snapshot)
    assert grpo.externals["model"].identity == f"hub:some/model@{revision}"


def test_a_download_changes_no_digest(tmp_path, snapshot):
    here = [node.digest for node in plan_of(tmp_path, "v2").order]
    shutil.rmtree(snapshot)
    assert [node.digest for node in plan_of(tmp_path, "v2").order] == here


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", None], ids=["weights", "tokenizer", "all"])
def test_what_is_not_there_whole_is_refused(tmp_path, snapshot, lost):
    if lost:
        (snapshot / lost).unlink()
    else:
        shutil.rmtree(snapshot.parent.parent)
    with pytest.raises(UserError, match="default branch") as caught:
        check_plan(plan_of(tmp_path, "v2"))
    assert caught.value.key == "student.revision" and "hf download some/model --revision v2" in caught.value.remedy
