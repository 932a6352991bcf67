"""Prompts are rendered with the models' own chat templates before anything starts."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.workflow.project import TEMPLATE, write_chat_model, write_model, write_project
from tests.support.workflow.refusal import refuse
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.data_slices import check_data
from verl_s2d.checks.inputs.model_pairs import models_of_rows
from verl_s2d.checks.inputs.rendered_prompts import check_prompts
from verl_s2d.data.slices import choose
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.platforms.template_date import VARIABLE
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.sampling.render_process import examine
from verl_s2d.stages.planning import make_plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan_of(tmp_path, **changes):
    return make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=["half-split"])


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_models_without_a_chat_template(tmp_path, role):
    refuse(
        tmp_path,
        role,
        "no chat template",
        "Add a chat_template",
        prepare=lambda: write_model(tmp_path / role, template=""),
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('only system roles') }}", ["cannot render problem", "only system roles"]),
        ("{{ messages[0].tools.first }}", ["cannot render problem", "UndefinedError"]),
        ("{% for m in messages %}{{ m.text }}{% endfor %}Solve it.", ["without the text of their last message"]),
        ("{{ messages[0]['content'][:8] }}", ["makes equal prompts of problems"]),
    ],
    ids=["raises", "needs", "loses", "equal"],
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_templates_that_do_not_fit_the_messages(tmp_path, role, template, words):
    weight = {"student": b"w", "teacher": b"t"}[role]
    prepare = lambda: write_model(tmp_path / role, template=template, weight=weight)  # noqa: E731
    error = refuse(tmp_path, "data.", f"of the {role}", *words, prepare=prepare)
    assert error.key.endswith(": prompt")


def test_content_that_is_no_text(tmp_path):
    def prepare():
        image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
        rows = pq.read_table(tmp_path / "held.parquet").to_pylist()
        pq.write_table(pa.Table.from_pylist([{**row, "prompt": image} for row in rows[:1]]), tmp_path / "held.parquet")

    refuse(tmp_path, "data.eval.held", "prompt", prepare=prepare)


@pytest.mark.parametrize(("name", "key"), [("train", "data.train"), ("held", "data.eval.held")])
def test_prompts_longer_than_the_limit(tmp_path, name, key):
    def prepare():
        for role in ("student", "teacher", "sft"):
            write_chat_model(tmp_path / role, TEMPLATE)
        path = tmp_path / f"{name}.parquet"
        rows = pq.read_table(path).to_pylist()
        rows[1]["prompt"][0]["content"] += " 1" * 20
        pq.write_table(pa.Table.from_pylist(rows), path)

    changes = {"data__labels": 20}
    error = refuse(tmp_path, "data.prompt_tokens", "1 of", "the longest has 22", key, prepare=prepare, **changes)
    assert error.value == 8 and "Set it to 22" in error.remedy


def test_only_problems_with_a_label_count(tmp_path):
    plan = plan_of(tmp_path)
    ids = [f"problem-{i}" for i in range(20)]
    unused = next(i for i in range(20) if f"problem-{i}" not in choose(ids, 16, 0)["all"])
    for role in ("student", "teacher"):
        write_chat_model(tmp_path / role, TEMPLATE)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    rows[unused]["prompt"][0]["content"] += " 1" * 20
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    plan = make_plan(load_recipe(tmp_path / "recipe.yaml"), run_dir=tmp_path / "run", rows=["half-split"])
    check_prompts(plan, check_data(plan), models_of_rows(plan))


def test_a_response_that_leaves_the_context(tmp_path):
    refuse(tmp_path, "evaluation.max_tokens", "context", evaluation={"samples": 2, "max_tokens": 64})


def test_options_that_no_template_reads(tmp_path):
    error = refuse(
        tmp_path, "data.chat_template.enable_thinkin", "No model", data__chat_template={"enable_thinkin": False}
    )
    assert "enable_thinking" in error.remedy


def test_one_prompt_is_shown_with_its_special_tokens(tmp_path):
    plan = plan_of(tmp_path)
    for role in ("student", "teacher"):
        write_chat_model(tmp_path / role, "{% for m in messages %}<user> {{ m.content }} <end>{% endfor %}")
    write_chat_model(tmp_path / "teacher", "{% for m in messages %}{{ m.content }} <end>{% endfor %}")
    shown = check_prompts(plan, check_data(plan), models_of_rows(plan)).detail.splitlines()
    assert shown[0] == "21 rendered, the longest has 4 tokens"
    prompts = dict(zip(shown[1::2], shown[2::2], strict=True))
    student, teacher = (prompts[f"the first one, as the {role} reads it:"] for role in ("student", "teacher"))
    assert student.startswith("[<user>]held ") and student.endswith("[<end>]") and "[<user>]" not in teacher


def test_equal_prompts_are_rendered_once(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    told = check_prompts(plan, check_data(plan), models_of_rows(plan))

    def fail(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(Probe, "__init__", fail)
    assert check_prompts(plan, check_data(plan), models_of_rows(plan)) == told
    (tmp_path / "student" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE + " "})
    )
    with pytest.raises(AssertionError, match="a process was started"):
        check_prompts(plan, check_data(plan), models_of_rows(plan))


def test_lengths_are_those_of_the_prompts_that_are_sampled(tmp_path):
    write_chat_model(tmp_path, "{% for m in messages %}<user> {{ m.content }} <end>{% endfor %}{{ suffix }}")
    tokenizer = load_tokenizer(str(tmp_path))
    prompts = [[{"role": "user", "content": f"problem {' 1' * i}"}] for i in range(5)]
    answer = examine(tokenizer, prompts, {"suffix": " held"}, lambda done: None)
    assert answer["tokens"] == [len(render_prompt(tokenizer, p, {"suffix": " held"})) for p in prompts]


def test_the_process_answers(tmp_path, own_composition_process):
    assert all("ground truth" in warning for warning in check_plan(plan_of(tmp_path)))


DATED = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("given", "printed"), [({}, "26 Jul 2024"), ({"data__template_date": "2025-01-02"}, "02 Jan 2025")]
)
def test_a_date_in_a_template_is_the_recipes(tmp_path, given, printed, monkeypatch):
    plan = plan_of(tmp_path, **given)
    write_chat_model(tmp_path / "student", DATED)
    write_chat_model(tmp_path / "teacher", DATED)
    answers = {}
    monkeypatch.setattr("verl_s2d.checks.inputs.rendered_prompts._shown", lambda found, _: answers.update(found) or "")
    check_prompts(plan, check_data(plan), models_of_rows(plan))
    text = f"{printed} held 0"
    assert answers["student"]["texts"][0] == hashlib.sha256(text.encode()).hexdigest()[:16]
    for node in plan.order:
        command = node.stage.command(node, plan.context, 1)
        if node.kind in ("rollouts", "evaluate"):
            monkeypatch.setenv(VARIABLE, command.env[VARIABLE])
            tokenizer = load_tokenizer(str(tmp_path / "student"))
            messages = [{"role": "user", "content": "held 0"}]
            assert render_prompt(tokenizer, messages) == tokenizer(text, add_special_tokens=False)["input_ids"]
        if node.kind in ("grpo", "opd"):
            date = given.get("data__template_date", "2024-07-26")
            assert f"+ray_kwargs.ray_init.runtime_env.env_vars.{VARIABLE}='{date}'" in command.argv


def test_another_date_is_another_result(tmp_path):
    plans = [plan_of(tmp_path, **given) for given in ({}, {"data__template_date": "2025-01-02"})]
    plain, dated = ({node.name: node.digest for node in plan.order} for plan in plans)
    assert {name for name in plain if plain[name] == dated[name]} == {"slices"}


@pytest.mark.parametrize(("date", "word"), [("2025-01-02", "prints the date"), ("tomorrow", "no date")])
def test_dates_without_effect_or_meaning(tmp_path, date, word):
    refuse(tmp_path, "data.template_date", word, data__template_date=date)
