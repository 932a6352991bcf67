"""A stage of a recipe's own: one file beside the recipe, with the row that uses it."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import FakeStages, write_project
from verl_s2d.checks.run_checks import RunChecks
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.inputs import finished_rows
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.store.manifest import read_manifest

FILE = """
import sys

from verl_s2d.workflow.stage import Command, Stage, model_location, require_export


class Copied(Stage):
    kind = "copied"
    trains = {trains}
    consumes = ("updates",)

    def needs_ray(self, context):
        return False

    def command(self, node, context, attempt):
        source, target = model_location(node, "model", context), str(context.directory(node) / "model")
        return Command([sys.executable, "-c", "import shutil, sys; shutil.copytree(*sys.argv[1:])", source, target])

    def finalize(self, node, directory):
        require_export(node, directory / "model")

    def ledger(self, node, directory, seconds):
        return super().ledger(node, directory, seconds) | {"updates": node.settings["updates"]}

    def makes_model(self, node):
        return True

    def describe(self, node):
        return "a copy"


def copied_student(b):
    return b.node(Copied(), "copied", {"updates": 7}, model=b.model("student"))
"""


@pytest.mark.parametrize("trains", [False, True])
def test_a_row_with_a_stage_of_its_own_is_planned_checked_run_and_reported(tmp_path, trains):
    (tmp_path / "mine.py").write_text(FILE.replace("{trains}", str(trains)))
    recipe = write_project(tmp_path, rows=["cold-student", "mine.py:copied_student"])
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run")
    launcher = FakeStages()
    with RunChecks(plan, PlainProgress()) as check:
        assert run_plan(plan, PlainProgress(), launcher=launcher, check=check) == []
    node = next(node for node in plan.order if node.kind == "copied")
    assert read_manifest(plan.context.directory(node))["ledger"]["updates"] == 7
    rows = {row.name: row for row in finished_rows(plan)}
    assert rows["copied-student"].ledger["updates"] == 7 and rows["cold-student"].ledger["updates"] == 0
    again = FakeStages()
    assert run_plan(make_plan(load_recipe(recipe), run_dir=tmp_path / "run"), PlainProgress(), launcher=again) == []
    assert again.started == [], "a finished stage of one's own is not built again"
