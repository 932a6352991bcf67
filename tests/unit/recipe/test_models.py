"""Models by role: both forms of a recipe, and models that nothing reads."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import write_model, write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

NONE = {"student": None, "teacher": None, "sft_teacher": None}


def plan_of(tmp_path, choose=None, **changes):
    return make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=choose)


def test_both_forms_build_the_same(tmp_path):
    short = plan_of(tmp_path, choose=["all"])
    long = plan_of(tmp_path, choose=["all"], **NONE, models={"student": "student", "teacher": {"model": "teacher"}})
    assert [node.digest for node in plan_of(tmp_path, choose=["all"], sft_teacher=None).order] == [
        node.digest for node in long.order
    ]
    assert long.facts()["about"]["teacher"] == "teacher" and "sft teacher" in short.facts()["about"]


def test_a_row_without_its_model_is_skipped_by_all_and_refused_by_name(tmp_path):
    lacking = {**NONE, "models": {"student": "student"}, "rows": ["cold-student"]}
    assert [row.name for row in plan_of(tmp_path, choose=["all"], **lacking).rows] == [
        "cold-student",
        "direct-grpo",
        "same-size-teacher",
    ]
    with pytest.raises(UserError, match="half-split") as caught:
        plan_of(tmp_path, choose=["half-split"], **lacking)
    assert caught.value.key == "models.teacher" and "Add `teacher:`" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "key", "word"),
    [
        ({"models": {"student": "other"}}, "student", "Keep one of"),
        ({"models": {"base": "student"}}, "models.base", "sft_teacher, student, teacher"),
        ({"models": {"base": 3}}, "models.base", "mapping"),
        ({"models": ["student"]}, "models", "dict"),
        ({"sft_teacher": {"args": {"x": 1}}}, "sft_teacher", "script"),
        ({"sft_teacher": {}}, "sft_teacher", "script"),
        ({"teacher": {"model": "teacher", "script": "a.py"}}, "teacher", "either"),
        ({"teacher": {"model": "teacher", "args": {"x": 1}}}, "teacher.args", "name a script"),
        ({"teacher": {"model": "teacher", "uses": ["a.py"]}}, "teacher.uses", "name a script"),
        ({"teacher": {"script": "a.py", "revision": "main"}}, "teacher.revision", "name a model"),
        ({"teacher": {"script": "a.py", "config": "c.json"}}, "teacher.config", "name a model"),
        ({"teacher": {"model": "teacher", "config": "c.json"}}, "models.teacher.config", "config.json of its own"),
        ({"teacher": {"model": "teacher", "revision": "main"}}, "teacher.revision", "no revision"),
        ({"teacher": {"modle": "teacher"}}, "teacher.modle", "Did you mean model?"),
        (
            {"data__train": None, "data__eval": {}, "data__source": {"script": "a.py", "trust_remote_code": True}},
            "data.source.trust_remote_code",
            "Known: script, args, uses",
        ),
        ({"data__train": None, "data__eval": {}, "data__source": {"args": {}}}, "data.source.script", "required"),
    ],
)
def test_sources_in_which_something_has_no_effect(tmp_path, changes, key, word):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, **changes)
    assert caught.value.key == key and word in str(caught.value)


OWN = """
from verl_s2d.recipe.rows import bridge


def from_the_base(b):
    return b.student_rl(bridge(b, b.model("base"), "1h", of="base"), "2h")
"""


def own_row(tmp_path, text=OWN, **changes):
    write_model(tmp_path / "base", weight=b"b")
    (tmp_path / "mine.py").write_text(text)
    return {"models": {"base": "base"}, "rows": ["cold-student", "mine.py:from_the_base"], **changes}


def test_a_row_of_the_recipe_is_built_under_its_own_name(tmp_path):
    changes = own_row(tmp_path)
    plan = plan_of(tmp_path, **changes)
    assert [row.name for row in plan.rows] == ["cold-student", "from-the-base"]
    names = [node.name for node in plan.order]
    assert {"rollouts-1h-base", "opd-1h-base", "student-rl-2h", "evaluate-from-the-base"} <= set(names)
    assert "from-the-base" in [row.name for row in plan_of(tmp_path, choose=["all"], **changes).rows]
    renamed = plan_of(tmp_path, choose=["mine"], **{**changes, "rows": ["mine=mine.py:from_the_base"]})
    assert [row.target.digest for row in renamed.rows] == [plan.rows[1].target.digest]
    matched = {"mine-same-updates": {"row": "direct-grpo", "to": "from-the-base", "by": "updates"}}
    assert plan_of(tmp_path, choose=["mine-same-updates"], **changes, matched=matched).rows


def test_the_model_that_only_a_row_of_the_recipe_reads_is_refused_without_that_row(tmp_path):
    with pytest.raises(UserError, match="No row reads"):
        plan_of(tmp_path, **own_row(tmp_path, rows=["cold-student"]))


@pytest.mark.parametrize(
    ("text", "entry", "word"),
    [
        (OWN, "none.py:from_the_base", "does not exist"),
        (OWN, "mine.py:from_the_bass", "from_the_bass"),
        (OWN, "full-bridge=mine.py:from_the_base", "taken"),
        (OWN, "a b=mine.py:from_the_base", "unusable"),
        ("import nothing_of_this_name", "mine.py:row", "nothing_of_this_name"),
        ("def row(b):\n    raise RuntimeError('half done')", "mine.py:row", "half done"),
        ("row = 3", "mine.py:row", "no function or class 'row'"),
        ("def row():\n    pass", "mine.py:row", "function of the builder"),
    ],
)
def test_rows_that_cannot_be_loaded(tmp_path, text, entry, word):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, **own_row(tmp_path, text, rows=[entry], models={}))
    assert caught.value.key == "rows" and word in str(caught.value)
