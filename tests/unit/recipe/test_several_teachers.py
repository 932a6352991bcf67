"""The row of several teachers: its stages, the commands that name them, and what is refused before any of them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.workflow.project import write_model, write_project
from verl_s2d.checks.inputs.data_slices import check_data
from verl_s2d.checks.inputs.routing import check_routing_of_slices
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

MODELS = {"math": {"model": "math", "serves": ["sums", "primes"]}, "code": {"model": "code", "serves": ["apps"]}}
SOURCES = ("sums", "apps", "primes", "apps")


def recipe_of(directory, models=MODELS, sources=SOURCES, **changes):
    recipe = write_project(directory, **{"rows": ["mopd"], "models": models, "data__labels": None} | changes)
    write_model(directory / "math", weight=b"m")
    write_model(directory / "code", weight=b"c")
    train = directory / "train.parquet"
    rows = pq.read_table(train).to_pylist()
    for number, row in enumerate(rows):
        row["data_source"] = sources[number % len(sources)]
    pq.write_table(pa.Table.from_pylist(rows), train)
    return recipe


def plan_of(directory, **changes):
    return make_plan(load_recipe(recipe_of(directory, **changes)), run_dir=directory / "run")


def test_each_teacher_is_trained_on_what_it_serves_and_all_teach_one_student(tmp_path):
    plan = plan_of(tmp_path)
    nodes = {node.name: node for node in plan.order}
    rl = {"math": "teacher-rl-all@primes,sums-math", "code": "teacher-rl-all@apps-code"}
    assert {name for name in nodes if name.startswith("teacher-rl")} == set(rl.values())
    for kind in ("warmup", "opd"):
        node = nodes[f"{kind}-all-mopd"]
        assert {"math", "code"} <= set(node.stage.frozen_roles(node)) <= {"math", "code", "model"}
        assert {role: node.inputs[role].name for role in rl} == rl
        assert node.settings["serves"] == {"math": ["primes", "sums"], "code": ["apps"]}
    caches = {source.name for source in nodes["warmup-all-mopd"].inputs.values() if source.kind == "rollouts"}
    assert caches == {"rollouts-all@apps-code", "rollouts-all@primes,sums-math"}
    opd = nodes["opd-all-mopd"]
    argv = opd.stage.command(opd, plan.context, 1).argv
    paths = {role: plan.context.directory(nodes[name]) / "model" for role, name in rl.items()}
    assert any(a.startswith("+s2d.models.math.path=") and str(paths["math"]) in a for a in argv)
    assert any(a.startswith("+s2d.models.math.serves=") and "primes" in a and "sums" in a for a in argv)
    assert not any(a.startswith("+s2d.teacher.") for a in argv)
    warmup = nodes["warmup-all-mopd"]
    files = next(a for a in warmup.stage.command(warmup, plan.context, 1).argv if a.startswith("data.train_files="))
    assert files.count("rollouts.parquet") == 2


def test_each_of_several_teachers_may_be_on_servers(tmp_path):
    servers = {"math": {"tensor_model_parallel_size": 2}}
    plan = plan_of(tmp_path, stages__opd__servers=servers, cluster__gpus_per_node=4)
    opd = next(node for node in plan.order if node.kind == "opd")
    argv = opd.stage.command(opd, plan.context, 1).argv
    assert {"+s2d.models.math.placement=server", "trainer.n_gpus_per_node=2"} <= set(argv)
    assert not any(argument.startswith("+s2d.models.code.placement") for argument in argv)
    # A row with one teacher leaves them alone.
    plan = plan_of(tmp_path, stages__opd__servers=servers, cluster__gpus_per_node=4, rows=["mopd", "half-split"])
    half = next(node for node in plan.order if node.name == "opd-1h")
    assert "trainer.n_gpus_per_node=4" in half.stage.command(half, plan.context, 1).argv


def test_teachers_share_the_warmups_rollouts(tmp_path):
    plan = plan_of(tmp_path, stages__rollouts={})
    rows = [node.settings["rows"] for node in plan.order if node.kind == "rollouts"]
    assert rows == [8, 8]  # of four steps with a batch of four


def test_what_a_model_serves_changes_no_stage_of_another_row(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    serving = plan_of(tmp_path / "with", rows=["full-bridge"])
    plain = plan_of(tmp_path / "without", rows=["full-bridge"], models={})
    assert [node.digest for node in serving.order] == [node.digest for node in plain.order]


def test_branches_are_trained_on_their_own_labels_and_taught_by_the_others_in_rounds_and_averaged(tmp_path):
    plan = plan_of(tmp_path, rows=["copd"], stages__copd={"rounds": 2, "rl_steps": 3, "opd_steps": 2})
    nodes = {node.name: node for node in plan.order}
    mean = nodes["average-copd"]
    assert {source.name for source in mean.inputs.values()} == {"opd-all@apps-math-2", "opd-all@primes,sums-code-2"}
    for role, own, others in (("math", "primes,sums", "apps"), ("code", "apps", "primes,sums")):
        before = nodes[f"student-rl-all@{own}-{role}-1"]
        assert before.externals["model"].location == str(tmp_path / "student")
        for number in (1, 2):
            rl, opd = nodes[f"student-rl-all@{own}-{role}-{number}"], nodes[f"opd-all@{others}-{role}-{number}"]
            peer = next(one for one in MODELS if one != role)
            assert (rl.settings["steps"], opd.settings["steps"]) == (3, 2)
            assert opd.inputs["model"] is rl and "credit" not in rl.settings
            assert opd.inputs[peer].name.startswith("student-rl") and opd.inputs[peer].name.endswith(f"{peer}-{number}")
            assert opd.settings["serves"] == {peer: others.split(",")}
            assert opd.inputs["slices"].settings["data_sources"] == others.split(",")
    assert nodes["student-rl-all@apps-code-2"].inputs["model"] is nodes["opd-all@primes,sums-code-1"]
    assert {node.kind for node in plan.order} == {"slices", "grpo", "opd", "average", "evaluate"}


def test_equal_branches_of_three_teach_each_other_by_source(tmp_path):
    models = MODELS | {"logic": {"model": "code", "serves": ["zebra"]}}
    rounds = {"rounds": 1, "rl_steps": 1, "opd_steps": 1}
    sources = ("sums", "apps", "primes", "zebra")
    plan = plan_of(tmp_path, rows=["copd"], models=models, sources=sources, stages__copd=rounds)
    node = next(n for n in plan.order if n.kind == "opd" and n.name.endswith("logic-1"))
    assert node.settings["serves"] == {"math": ["primes", "sums"], "code": ["apps"]}


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"rl_steps": 0}, {"opd_steps": -1}])
def test_rounds_and_steps_are_at_least_one(tmp_path, changes):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, rows=["copd"], stages__copd={"rounds": 1, "rl_steps": 1, "opd_steps": 1} | changes)
    assert caught.value.key == f"stages.copd.{next(iter(changes))}"


def test_a_single_branch_and_missing_rounds_are_refused(tmp_path):
    with pytest.raises(UserError, match="no peer") as caught:
        one = {"math": {"model": "math", "serves": ["apps", "sums", "primes"]}}
        plan_of(tmp_path, rows=["copd"], models=one, stages__copd={"rounds": 1, "rl_steps": 1, "opd_steps": 1})
    assert caught.value.key == "models"
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, rows=["copd"])
    assert caught.value.key == "stages.copd"


@pytest.mark.parametrize(
    ("models", "key"),
    [
        (MODELS | {"logic": {"model": "code", "serves": ["apps"]}}, "models.logic.serves"),
        ({"base": {"model": "code", "serves": ["apps", "apps"]}}, "models.base.serves"),
        ({"math": {"model": "math", "serves": []}}, "models.math.serves"),
        ({}, "rows"),
    ],
)
def test_a_recipe_whose_teachers_cannot_be_meant_is_refused(tmp_path, models, key):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_of(tmp_path, models=models))
    assert caught.value.key == key and caught.value.remedy


def test_a_model_that_rows_ask_about_everything_serves_no_sources(tmp_path):
    teacher = {"model": "teacher", "serves": ["apps"]}
    with pytest.raises(UserError, match="all problems") as caught:
        load_recipe(recipe_of(tmp_path, teacher=teacher))
    assert caught.value.key.endswith("teacher.serves")


@pytest.mark.parametrize(
    ("sources", "value"), [((*SOURCES, "logic"), "logic"), (("apps", "sums", "apps", "primes"), None)]
)
def test_a_source_that_nobody_serves_is_refused_before_any_stage(tmp_path, sources, value):
    plan = plan_of(tmp_path, sources=sources)
    look = lambda: check_routing_of_slices(plan, plan.order, check_data(plan))  # noqa: E731
    if value is None:
        assert look() == ["opd-all-mopd"]
        return
    with pytest.raises(UserError, match="no teacher serves") as caught:
        look()
    assert caught.value.value == value
