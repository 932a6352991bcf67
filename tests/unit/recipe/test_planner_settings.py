"""The section `planner:`: candidates by role, the labelled sample, and what is refused when a recipe is read."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import write_model, write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.planner_settings import Planner
from verl_s2d.stages.planning import make_plan


def test_candidates_are_roles_that_begin_with_teacher_or_those_named():
    models = ["student", "teacher", "sft_teacher", "teacher_small"]
    assert Planner().candidates(models) == ("teacher", "teacher_small")
    assert Planner(teachers=["sft_teacher", "teacher"]).candidates(models) == ("sft_teacher", "teacher")


@pytest.mark.parametrize(
    ("planner", "key", "words"),
    [
        ({"teachers": ["teecher"]}, "planner.teachers", ["teecher", "Did you mean teacher?"]),
        ({"teachers": ["student"]}, "planner.teachers", ["student is no candidate"]),
        ({"teachers": ["teacher", "teacher"]}, "planner.teachers", ["twice"]),
        ({"teachers": []}, "planner.teachers", ["no teacher"]),
        ({"problems": 9}, "planner.problems", ["At most 8", "data.labels"]),
        ({"problems": 1}, "planner.problems", ["At least 2"]),
        ({"samples": 1}, "planner.samples", ["At least 2"]),
        ({"thresholds": {"overlop": 0.4}}, "planner.thresholds.overlop", ["Did you mean overlap?"]),
        ({"thresholds": {"travel": 0}}, "planner.thresholds.travel", ["0"]),
        ({"engine": {"model": "x"}}, "planner.engine.model", []),
    ],
)
def test_a_section_that_cannot_be_meant(tmp_path, planner, key, words):
    recipe = write_project(tmp_path, data__labels=8, planner={"problems": 4} | planner)
    with pytest.raises(UserError) as caught:
        load_recipe(recipe)
    assert caught.value.key == key and all(word in str(caught.value) for word in words), str(caught.value)


def test_a_planner_without_a_teacher(tmp_path):
    recipe = write_project(
        tmp_path, teacher=None, sft_teacher=None, rows=["direct-grpo"], planner={"problems": 4}, data__labels=8
    )
    with pytest.raises(UserError, match="no teacher") as caught:
        load_recipe(recipe)
    assert caught.value.key == "planner.teachers"


def test_a_candidate_that_no_row_reads_is_read_by_the_planner_and_changes_no_row(tmp_path):
    plain = make_plan(load_recipe(write_project(tmp_path, data__labels=8)), run_dir=tmp_path / "run")
    write_model(tmp_path / "small")
    more = {"models": {"teacher_small": "small"}, "data__labels": 8}
    with pytest.raises(UserError, match="No row reads") as caught:
        make_plan(load_recipe(write_project(tmp_path, **more)))
    assert caught.value.key == "models.teacher_small"
    planned = make_plan(load_recipe(write_project(tmp_path, planner={"problems": 4}, **more)), run_dir=tmp_path / "run")
    assert [node.digest for node in planned.order] == [node.digest for node in plain.order]
