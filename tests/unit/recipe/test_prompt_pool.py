"""`data.prompts` and `data.split`: rows that read them, their slices and sizes, and what is refused before a run."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tests.support.workflow.project import write_problems, write_project
from verl_s2d import arguments
from verl_s2d.checks.inputs.data_slices import check_counts, check_data
from verl_s2d.data.problems import read_problems
from verl_s2d.data.slices import Options, choose, write_slices
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.rows import ROWS
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.prepare import write_pool
from verl_s2d.stages.prepare.prompt_pool import PromptPool, labelled_file, pool_files
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.stages.prepare.stage import labelled_part
from verl_s2d.workflow.graph import ancestors

BRIDGES = ["bridge-unlabelled", "bridge-more-prompts"]


def write_pool_file(path, texts):
    path.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": text}]}) + "\n" for text in texts))


def plan_of(directory, chosen=None, *, texts=None, **changes):
    recipe = write_project(directory, **{"data__prompts": "more.jsonl", "rows": BRIDGES} | changes)
    write_pool_file(directory / "more.jsonl", texts or [f"problem {i}" for i in range(100, 112)])
    return make_plan(load_recipe(recipe), run_dir=directory / "run", rows=chosen)


def nodes_of(plan, row):
    target = next(r.target for r in plan.rows if r.name == row)
    return {node.name: node for node in ancestors(target)}


def test_the_names_of_slices_with_a_pool():
    assert [labelled_part(part) for part in ("all", "prompts", "1h+prompts")] == ["all", None, "1h"]


def test_rows_distil_on_the_pool_alone_or_beside_the_labels(tmp_path):
    plan = plan_of(tmp_path, ["full-bridge", *BRIDGES])
    full, alone, beside = (nodes_of(plan, row) for row in ("full-bridge", *BRIDGES))
    assert full["teacher-rl-all"].digest == alone["teacher-rl-all"].digest == beside["teacher-rl-all"].digest
    assert {"slices-prompts", "rollouts-prompts", "warmup-prompts", "opd-prompts"} <= alone.keys()
    opd = beside["opd-all+prompts"]
    assert slice_size(plan, alone["opd-prompts"]) == 12 and slice_size(plan, opd) == 28
    pool = plan.context.directory(opd.inputs["slices"]) / "prompts.parquet"
    argv = opd.stage.command(opd, plan.context, 1).argv
    assert any(argument.endswith(str(pool)) for argument in argv)
    assert any(argument.startswith("+s2d.prompt_ledger=") for argument in argv)
    labelled = full["opd-all"]
    assert not any("prompt_ledger" in argument for argument in labelled.stage.command(labelled, plan.context, 1).argv)
    rollouts = alone["rollouts-prompts"]
    assert any("prompts.parquet" in a for a in rollouts.stage.command(rollouts, plan.context, 1).argv)


def test_a_pool_rebuilds_no_row_that_does_not_read_it(tmp_path):
    with_pool = plan_of(tmp_path, ["half-split", "full-bridge"])
    without = plan_of(tmp_path, ["half-split", "full-bridge"], data__prompts=None, rows=["half-split"])
    assert [node.digest for node in with_pool.order] == [node.digest for node in without.order]
    assert not [node for node in with_pool.order if isinstance(node.stage, PromptPool)]


def test_the_pool_of_some_seeds_is_one(tmp_path):
    plan = plan_of(tmp_path, ["bridge-unlabelled"], seeds=[0, 1])
    assert [node.name for node in plan.order if isinstance(node.stage, PromptPool)] == ["slices-prompts"]


def test_rows_of_a_pool_are_in_all_where_there_is_one(tmp_path):
    assert [row.name for row in plan_of(tmp_path, ["all"]).rows] == [*ROWS, *BRIDGES]
    with pytest.raises(UserError, match="no prompts without labels") as caught:
        plan_of(tmp_path, BRIDGES, data__prompts=None, rows=["half-split"])
    assert caught.value.key == "data.prompts"


def test_what_no_row_reads_is_refused(tmp_path):
    with pytest.raises(UserError, match="No row of the recipe reads prompts") as caught:
        plan_of(tmp_path, rows=["half-split"])
    assert caught.value.key == "data.prompts" and caught.value.value == ["more.jsonl"]
    with pytest.raises(UserError, match="divides the labels") as caught:
        plan_of(tmp_path, data__split=0.3)
    assert caught.value.key == "data.split" and caught.value.value == 0.3


@pytest.mark.parametrize(
    ("changes", "row", "key"),
    [
        ({"stages__opd__signal": "uni_opd"}, None, "stages.opd.signal"),
        ({"stages__opd__teacher_prompt": "{prompt} {answer}"}, None, "stages.opd.teacher_prompt"),
        ({"stages__opd__problem_weights": {}}, None, "problem_weights"),
        ({"stages__warmup__problem_weights": {}}, None, "problem_weights"),
        ({}, "def mine(b):\n    return b.student_rl(b.model('student'), 'all+prompts')\n", "rows"),
        ({}, "def mine(b):\n    return b.teacher_rl(b.model('teacher'), 'prompts')\n", "rows"),
    ],
)
def test_what_reads_labels_reads_no_prompts_without(tmp_path, changes, row, key):
    (tmp_path / "mine.py").write_text(row or "")
    with pytest.raises(UserError, match="reads labels, and slice") as caught:
        plan_of(tmp_path, **changes, **({"rows": ["mine.py:mine"]} if row else {}))
    assert caught.value.key == key and "slice of labelled problems" in caught.value.remedy


def test_a_teachers_prompt_without_columns_reads_a_pool(tmp_path):
    plan = plan_of(tmp_path, stages__opd__teacher_prompt="{prompt} a")
    assert not nodes_of(plan, "bridge-unlabelled")["opd-prompts"].stage.reads_answers


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["problem 100", "held 2"], "evaluation or validation"),
        (["problem 100", "valid 1"], "evaluation or validation"),
        (["problem 100", "problem 100"], "more than once"),
        ([f"problem {i}" for i in range(20)], "labelled problems"),
    ],
)
def test_check_refuses_prompts_of_other_sets(tmp_path, texts, said):
    write_problems(tmp_path / "valid.parquet", range(3), prefix="valid")
    plan = plan_of(tmp_path, texts=texts, data__validation="valid.parquet", stages__teacher_rl__validate_every=2)
    with pytest.raises(UserError, match=said) as caught:
        check_data(plan)
    assert caught.value.key == "data.prompts" and caught.value.value in texts


def test_problems_whose_labels_are_not_used_may_be_prompts(tmp_path):
    ids = choose([f"problem-{i}" for i in range(20)], 16, 0)["all"]
    left = [f"problem {i}" for i in range(20) if f"problem-{i}" not in ids]
    files = check_data(plan_of(tmp_path, texts=left))
    assert [len(prompts) for key, prompts in files.values() if key == "data.prompts"] == [4]


@pytest.mark.parametrize("slice_name", ["prompts", "all+prompts"])
def test_a_pool_is_written_without_answers(tmp_path, slice_name):
    plan = plan_of(tmp_path)
    opd = next(node for node in plan.order if node.name == f"opd-{slice_name}")
    pool = opd.inputs["slices"]
    if "slices" in pool.inputs:
        directory = plan.context.directory(pool.inputs["slices"])
        write_slices(Options(train=str(tmp_path / "train.parquet"), out=str(directory), labels=16))
        assert labelled_file(pool, plan.context) == directory / "all-prompts.parquet"
    assert pool_files(pool, plan.context) == [tmp_path / "more.jsonl"]
    argv = pool.stage.command(pool, plan.context, 1).argv
    write_pool.main(arguments.parse(argv[3:], write_pool.Options))
    written = read_problems(plan.context.directory(pool) / "prompts.parquet")
    assert len(written) == slice_size(plan, opd) == (12 if slice_name == "prompts" else 28)
    assert all(not p.ground_truth and set(p.extra_info) == {"index"} for p in written)
    assert sum(p.id.startswith("prompt:") for p in written) == 12
    pool.stage.finalize(pool, plan.context.directory(pool))
    assert pool.stage.ledger(pool, plan.context.directory(pool), 1.0)["overlong_prompts"] == 0


def test_a_list_of_files_and_a_script(tmp_path):
    write_pool_file(tmp_path / "other.jsonl", ["problem 200"])
    plan = plan_of(tmp_path, data__prompts=["more.jsonl", "other.jsonl"])
    assert slice_size(plan, nodes_of(plan, "bridge-unlabelled")["opd-prompts"]) == 13
    (tmp_path / "make.py").write_text("")
    scripted = plan_of(tmp_path, data__prompts={"script": "make.py", "args": {"seed": "{seed}"}})
    opd = nodes_of(scripted, "bridge-unlabelled")["opd-prompts"]
    assert slice_size(scripted, opd) is None and opd.inputs["slices"].inputs["prompts"].kind == "script"
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, data__prompts={"scrip": "make.py"})
    assert caught.value.key.startswith("data.prompts.scrip")


def test_a_share_of_the_labels(tmp_path):
    recipe = write_project(tmp_path, rows=["half-split"], data__split=0.3)
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run")
    nodes = {node.name: node for node in plan.order}
    assert slice_size(plan, nodes["opd-1h"]) == 4 and slice_size(plan, nodes["student-rl-2h"]) == 12
    slices = nodes["slices"]
    assert "split=0.3" in slices.stage.command(slices, plan.context, 1).argv
    written = write_slices(
        Options(train=str(tmp_path / "train.parquet"), out=str(tmp_path / "s"), labels=16, split=0.3)
    )
    assert [len(written[name]) for name in ("all", "1h", "2h")] == [16, 4, 12]
    assert pq.read_metadata(tmp_path / "s" / "1h-prompts.parquet").num_rows == 4
    half = choose(written["all"], None, 0)
    assert choose(written["all"], None, 0, 0.25)["1h"] == half["1h"][:4]
    assert [len(choose([str(i) for i in range(100)], None, 0, share)["1h"]) for share in (0.29, 0.5, 0.57)] == [
        29,
        50,
        57,
    ]
    with pytest.raises(UserError, match="would be in 1h") as caught:
        choose(written["all"], None, 0, 0.01)
    assert caught.value.key == "data.split"
    recipe = write_project(tmp_path, rows=["half-split"], data__split=0.01)
    with pytest.raises(UserError, match="would be in 1h"):
        check_counts(make_plan(load_recipe(recipe), run_dir=tmp_path / "run"))
