"""Prompts longer than data.prompt_tokens: one policy for slices, evaluation sets and validation."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.workflow.project import FakeStages, settings, write_chat_model, write_problems, write_project
from tests.support.workflow.refusal import refuse
from tests.support.workflow.runs import Lines
from verl_s2d import arguments
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.data_slices import check_data
from verl_s2d.checks.inputs.model_pairs import models_of_rows
from verl_s2d.checks.inputs.rendered_prompts import check_prompts
from verl_s2d.data.problems import read_problems
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.stages.evaluate.sample_and_score import Options as EvaluationOptions
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.ledger import add_ledgers
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.store.manifest import read_manifest

TEMPLATES = {
    "student": "{% for m in messages %}<user> {{ m.content }} <end>{% endfor %}",
    "teacher": "{% for m in messages %}{{ m.content }} <end>{% endfor %}",
    "sft": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
VALIDATED = {"steps": 4, "save_every": 2, "validate_every": 2, "verl": settings()["stages"]["student_rl"]["verl"]}


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


def lengthen(path, places, words=20):
    rows = pq.read_table(path).to_pylist()
    for place in places:
        content = rows[place]["prompt"][0]["content"]
        rows[place]["prompt"][0]["content"] = f"{'1 ' * words}{content}"
    pq.write_table(pa.Table.from_pylist(rows), path)


def write(tmp_path, *, train=(3, 7), held=(1,), validation=(0,)):
    """Long prompts at these places; one of the validation problems is too long with the student's template alone."""
    for role, template in TEMPLATES.items():
        write_chat_model(tmp_path / role, template, weight=role[:1].encode())
    write_problems(tmp_path / "validation.parquet", range(4), prefix="validation")
    lengthen(tmp_path / "train.parquet", train)
    lengthen(tmp_path / "held.parquet", held)
    lengthen(tmp_path / "validation.parquet", validation, words=5)


def plan_of(tmp_path, policy):
    changes = {"data__overlong_prompts": policy, "data__labels": None, "data__validation": "validation.parquet"}
    recipe = write_project(tmp_path, stages__student_rl=VALIDATED, **changes)
    write(tmp_path)
    return make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])


def built(plan):
    """Run the plan with stages that do nothing; return its nodes by kind, and the commands by module."""
    launcher = FakeStages()
    assert run_plan(plan, Lines(), launcher=launcher, check=lambda final: check_plan(plan)) == []
    return {node.kind: node for node in plan.order}, launcher.started


def long_words(problem):
    return problem.messages[0]["content"].split().count("1") > 2


def test_dropped_in_every_stage(tmp_path):
    plan = plan_of(tmp_path, "drop")
    told = check_prompts(plan, check_data(plan), models_of_rows(plan)).detail.splitlines()[-1]
    assert told.endswith("longer than 8 tokens: 1 of data.eval.held, 2 of data.train, 1 of data.validation")
    nodes, started = built(plan)
    prompts = plan.context.directory(nodes["prompts"])
    summary = json.loads((prompts / "prompts.json").read_text())["files"]
    assert {key: counts["dropped"] for key, counts in summary.items()} == {
        "train": ["problem-3", "problem-7"],
        "eval.held": ["held-1"],
        "validation": ["validation-0"],
    }
    slices = plan.context.directory(nodes["slices"])
    for name, size in (("all", 18), ("1h", 9), ("2h", 9)):
        problems = read_problems(slices / f"{name}.parquet")
        assert len(problems) == size and not any(map(long_words, problems))
    (evaluated,) = [argv for argv in started if argv[0] == "verl_s2d.stages.evaluate.sample_and_score"]
    files = arguments.parse(evaluated[1:], EvaluationOptions).set
    assert files == {"held": str(prompts / "held.parquet")} and len(read_problems(files["held"])) == 4
    verl = [argument for argv in started for argument in argv if argument.startswith("data.val_files=")]
    assert f"data.val_files={prompts}/validation/validation.parquet" in verl
    ledgers = [read_manifest(plan.context.directory(node))["ledger"] for node in plan.order]
    assert add_ledgers(ledgers)["overlong_prompts"] == 4


def test_cut_in_every_stage(tmp_path):
    plan = plan_of(tmp_path, "cut")
    nodes, _ = built(plan)
    prompts = plan.context.directory(nodes["prompts"])
    problems = {p.id: p.messages for p in read_problems(prompts / "train.parquet")}
    assert len(problems) == 20 and problems["problem-0"] == [{"role": "user", "content": "problem 0"}]
    cut = problems["problem-3"]
    assert cut[0]["content"].endswith("1 problem 3")
    lengths = {role: len(render_prompt(load_tokenizer(str(tmp_path / role)), cut)) for role in TEMPLATES}
    assert lengths == {"student": 8, "teacher": 7, "sft": 6}, "as long as the longest template allows"


def test_the_default_adds_no_stage(tmp_path):
    plan = plan_of(tmp_path, "refuse")
    assert not any(node.kind == "prompts" for node in plan.order)


def test_a_cut_that_would_leave_nothing_drops_the_problem(tmp_path):
    template = TEMPLATES["student"] + " <end>" * 10

    def prepare():
        write(tmp_path)
        write_chat_model(tmp_path / "student", template)

    refuse(tmp_path, "data.train", "A half", prepare=prepare, data__overlong_prompts="cut")


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"data__labels": None}, "data.train_batch_size", ["larger than the 3 problems"]),
        ({"data__labels": 8}, "data.labels", ["only 6 training problems"]),
    ],
)
def test_what_is_left_has_to_suffice(tmp_path, changes, key, words):
    prepare = lambda: write(tmp_path, train=range(14))  # noqa: E731
    refuse(tmp_path, key, *words, prepare=prepare, data__overlong_prompts="drop", **changes)


def test_other_weights_make_no_other_prompts_and_another_template_does(tmp_path):
    digests = []
    for template, weight in ((TEMPLATES["teacher"], b"t"), (TEMPLATES["teacher"], b"x"), (TEMPLATES["sft"], b"t")):
        plan_of(tmp_path, "drop")
        write_chat_model(tmp_path / "teacher", template, weight=weight)
        plan = make_plan(load_recipe(tmp_path / "recipe.yaml"), run_dir=tmp_path / "run", rows=["half-split"])
        digests.append(next(node.digest for node in plan.order if node.kind == "prompts"))
    assert digests[0] == digests[1] != digests[2]
