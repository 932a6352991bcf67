"""A row's slices of some data sources: their names, files, batch sizes and sizes in a plan."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.workflow.project import write_project
from verl_s2d.data.slices import Options, write_slices
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.stages.prepare.stage import parts_of

ROW = """
def by_source(b):
    teacher = b.teacher_rl(b.model("teacher"), "1h@code,math")
    cache = b.rollouts(teacher, "all@math")
    return b.opd(b.warmup(b.model("student"), teacher, cache), teacher, "all@code")
"""


def plan_of(directory, **changes):
    recipe = write_project(directory, rows=["rows.py:by_source"], **changes)
    (directory / "rows.py").write_text(ROW)
    train = directory / "train.parquet"
    rows = pq.read_table(train).to_pylist()
    for number, row in enumerate(rows):
        row["data_source"] = ("math", "code", "logic", "math")[number % 4]
    pq.write_table(pa.Table.from_pylist(rows), train)
    return make_plan(load_recipe(recipe), run_dir=directory / "run")


def test_stages_read_the_slices_of_their_sources(tmp_path):
    plan = plan_of(tmp_path, data__labels=16)
    nodes = {node.name: node for node in plan.order}
    assert {name for name in nodes if name.startswith("slices")} == {"slices-code,math", "slices-math", "slices-code"}
    assert nodes["slices-code,math"].settings["data_sources"] == ["code", "math"]
    written = write_slices(
        Options(train=str(tmp_path / "train.parquet"), out=str(tmp_path / "s"), labels=16, data_sources=["code"])
    )
    opd = nodes["opd-all@code"]
    assert opd.settings["slice"] == "all" and opd.inputs["slices"] is not nodes["slices-math"]
    assert slice_size(plan, opd) == len(written["all"])
    prompts = plan.context.directory(nodes["slices-code"]) / "all-prompts.parquet"
    assert any(argument.endswith(str(prompts)) for argument in opd.stage.command(opd, plan.context, 1).argv)
    assert "slice all@code" in opd.stage.describe(opd)
    assert nodes["warmup-all@math"].inputs["rollouts"].name == "rollouts-all@math"


def test_a_batch_fits_the_slice_of_its_source(tmp_path):
    verl = {"actor_rollout_ref.rollout.n": 2}
    plan = plan_of(tmp_path, data__labels=None, stages__opd__verl=verl)
    opd = next(node for node in plan.order if node.kind == "opd")
    assert slice_size(plan, opd) == 5 and opd.settings["verl"]["data.train_batch_size"] == 4


def test_labels_of_some_sources_match_no_other_row(tmp_path):
    matched = {"same": {"row": "direct-grpo", "to": "by-source", "by": "labels"}}
    recipe = write_project(tmp_path, rows=["rows.py:by_source", "same"], matched=matched)
    (tmp_path / "rows.py").write_text(ROW)
    with pytest.raises(UserError, match="some data sources only") as caught:
        make_plan(load_recipe(recipe), run_dir=tmp_path / "run")
    assert caught.value.key == "matched.same.by"


def test_names_of_slices():
    assert parts_of("1h") == ("1h", ()) and parts_of("all@b,openai/gsm8k,a") == ("all", ("a", "b", "openai/gsm8k"))
