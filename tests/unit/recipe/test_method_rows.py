"""Rows of other methods and controls differ from full-bridge in the signal of stage 2b, and in nothing else."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.method_rows import METHOD_ROWS, SIGNALS
from verl_s2d.recipe.rows import ROWS
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.graph import ancestors


def plan_of(tmp_path, chosen, **changes):
    return make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=chosen)


def stages(plan, row):
    target = next(r.target for r in plan.rows if r.name == row)
    return {n.name: n for n in ancestors(target) if n.kind != "evaluate"}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_row_differs_from_full_bridge_in_the_signal_of_2b(tmp_path, name):
    plan = plan_of(tmp_path, ["full-bridge", name])
    full, other = stages(plan, "full-bridge"), stages(plan, name)
    shared = {n.digest for n in full.values()} & {n.digest for n in other.values()}
    assert {n.kind for n in full.values() if n.digest not in shared} == {"opd"}
    plain, changed = full["opd-all"], other[f"opd-all-{name}"]
    assert changed.settings["signal"]["type"] == SIGNALS[name]["type"]
    differing = {key for key in plain.settings if plain.settings[key] != changed.settings.get(key)}
    # An exact signal does not read the sampler's log-probs.
    assert {"signal"} <= differing <= {"signal", "verl"}
    # Uni-OPD reads the verifier's scores.
    assert changed.settings.keys() - plain.settings.keys() == ({"verifier"} if name == "uni-opd" else set())


def test_a_delta_is_from_the_teacher_before_rl_to_after_and_on_the_student_before_the_warmup(tmp_path):
    plan = plan_of(tmp_path, ["delta", "exopd"])
    delta, exopd = (stages(plan, name)[f"opd-all-{name}"] for name in ("delta", "exopd"))
    teacher = stages(plan, "delta")["teacher-rl-all"]
    for node in (delta, exopd):
        assert node.inputs["teacher"] is teacher or node.inputs["teacher"].digest == teacher.digest
        assert node.externals["base"] == teacher.externals["model"]
    warmup = stages(plan, "delta")["warmup-all"]
    assert delta.externals["student"] == warmup.externals["model"]
    assert "student" not in exopd.externals


def test_the_self_teacher_is_the_student_that_enters_2b(tmp_path):
    node = stages(plan_of(tmp_path, ["self-teacher"]), "self-teacher")["opd-all-self-teacher"]
    assert node.inputs["teacher"].digest == node.inputs["model"].digest


def test_no_teacher_has_no_frozen_model(tmp_path):
    plan = plan_of(tmp_path, ["no-teacher"])
    node = stages(plan, "no-teacher")["opd-all-no-teacher"]
    assert set(node.inputs) | set(node.externals) == {"model", "slices"}
    assert not [o for o in node.stage.command(node, plan.context, 1).argv if "s2d.teacher" in o or "s2d.models" in o]


def test_all_rows_are_the_papers_unless_the_recipe_names_more(tmp_path):
    assert [r.name for r in plan_of(tmp_path, ["all"]).rows] == list(ROWS)
    named = plan_of(tmp_path, ["all"], rows=["full-bridge", "exopd"])
    assert [r.name for r in named.rows] == [*ROWS, "exopd"]


def test_a_row_of_ones_own_cannot_take_the_name_of_one(tmp_path):
    (tmp_path / "rows.py").write_text("def exopd(b):\n    return b.model('student')\n")
    with pytest.raises(UserError, match=r"exopd=rows\.py|name of this row"):
        plan_of(tmp_path, None, rows=["rows.py:exopd"])
    assert not METHOD_ROWS.keys() & ROWS.keys()
