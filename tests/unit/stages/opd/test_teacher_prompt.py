"""A prompt of the teacher's own: settings, commands, ledger, and what check refuses."""

from __future__ import annotations

import pytest
import torch
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from tests.support.tiny import write_model
from tests.support.tiny_verl import composed
from tests.support.workflow.project import TEMPLATE, write_chat_model, write_project
from tests.support.workflow.refusal import refuse
from verl_s2d.checks.inputs.data_slices import check_data
from verl_s2d.checks.inputs.model_pairs import models_of_rows
from verl_s2d.checks.inputs.teacher_prompts import check_teacher_prompts
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sampling.prompts import load_tokenizer
from verl_s2d.stages.opd import prompt_renderer
from verl_s2d.stages.opd.config import read_opd_config, read_opd_settings
from verl_s2d.stages.planning import make_plan
from verl_s2d.teachers.own_prompt import OWN_PROMPTS
from verl_s2d.verifiers.ledgered import record_label, verifier_calls

OTHER_ROLE = ("~s2d.teacher", "+s2d.signal={type: composed, terms: {other: 1}}", "+s2d.models.other.path=x")
ULYSSES = (
    "++actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2",
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
)
CONCISE, TOLD = "{prompt} 1", "{prompt} {answer}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan_of(tmp_path, **changes):
    return make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=["half-split"])


def opd_of(tmp_path, **changes):
    plan = plan_of(tmp_path, **changes)
    (node,) = [node for node in plan.order if "on-policy" in node.stage.describe(node)]
    return node, node.stage.command(node, plan.context, 1).argv


def test_the_section_is_read_and_written():
    config = composed("+s2d.teacher_prompt='{prompt} {answer}'", "+s2d.label_ledger=somewhere")
    found = read_opd_config(config)
    assert found.teacher_prompt == TOLD and found.own_prompts == {"teacher"}
    assert read_opd_settings(found.written()) == found
    assert read_opd_config(composed()).own_prompts == frozenset()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.teacher_prompt=concise"], "s2d.teacher_prompt"),
        (["+s2d.teacher_prompt='{prompt} {}'"], "s2d.teacher_prompt"),
        (["+s2d.label_ledger=somewhere"], "s2d.label_ledger"),
        (["+s2d.teacher_prompt='{prompt}.'", "+s2d.label_ledger=somewhere"], "s2d.label_ledger"),
        (["+s2d.teacher_prompt='{prompt}.'", "+s2d.teacher.placement=server"], "s2d.teacher_prompt"),
        (
            [*OTHER_ROLE, "+s2d.teacher_prompt='{prompt}.'"],
            "s2d.teacher_prompt",
        ),
        (
            ["+s2d.signal.type=jsd", *ULYSSES, "+s2d.teacher_prompt='{prompt}.'"],
            "s2d.teacher_prompt",
        ),
    ],
)
def test_a_prompt_that_nobody_reads_or_that_cannot_be_aligned_is_refused(changes, key):
    with pytest.raises(UserError) as caught:
        read_opd_config(composed(*changes))
    assert caught.value.key == key and caught.value.remedy


def test_an_instruction_reads_no_label_and_a_column_does(tmp_path):
    plain, _ = opd_of(tmp_path)
    concise, command = opd_of(tmp_path, stages__opd__teacher_prompt=CONCISE)
    assert "labels" not in concise.stage.consumes
    assert any(argument.startswith("+s2d.teacher_prompt=") for argument in command)
    assert any(argument.endswith("-prompts.parquet") for argument in command)
    told, command = opd_of(tmp_path, stages__opd__teacher_prompt=TOLD)
    assert "labels" in told.stage.consumes and "of the teacher's own" in told.stage.describe(told)
    assert any(argument.startswith("+s2d.label_ledger=") for argument in command)
    assert not any("-prompts.parquet" in argument for argument in command)
    assert len({plain.digest, concise.digest, told.digest}) == 3
    assert opd_of(tmp_path, stages__opd__teacher_prompt=None)[0].digest == plain.digest


def test_a_recipe_with_an_idle_prompt_is_refused(tmp_path):
    error = refuse(
        tmp_path,
        "stages.opd.teacher_prompt",
        "no model in the role",
        stages__opd__teacher_prompt=CONCISE,
        stages__opd__signal={"type": "composed", "terms": {"student": 1.0}},
    )
    assert error.value == CONCISE
    refuse(tmp_path, "stages.opd.teacher_prompt", "see the problem", stages__opd__teacher_prompt="Be concise.")


def test_labels_told_to_a_teacher_are_no_verifier_calls(tmp_path):
    for problem in ("a", "b", "a"):
        record_label(str(tmp_path / "verifier"), problem)
    assert verifier_calls(tmp_path) == {
        "labels_read": ["a", "b"],
        "prompts_read": [],
        "verifier_calls": 0,
        "unsettled_calls": 0,
        "unscored_calls": 0,
        "judge_calls": 0,
        "judge_tokens": 0,
    }


def checked(tmp_path, **changes):
    plan = plan_of(tmp_path, **changes)
    for role in ("student", "teacher"):
        write_chat_model(tmp_path / role, TEMPLATE)
    return check_teacher_prompts(plan, check_data(plan), models_of_rows(plan)).detail


def test_the_teachers_prompts_are_rendered_with_its_template(tmp_path):
    assert "student's prompts" in checked(tmp_path)
    shorter = checked(tmp_path, stages__opd__teacher_prompt="{prompt}")
    longer = checked(tmp_path, stages__opd__teacher_prompt="{prompt} 1 2 3")
    tokens = [int(told.split()[-2]) for told in (shorter, longer)]
    assert tokens[1] == tokens[0] + 3


@pytest.mark.parametrize(
    ("template", "words"),
    [("{prompt}" + " 1" * 5000, "exceed"), ("{prompt} {hint}", "has no hint")],
    ids=["too long", "no column"],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, template, words):
    with pytest.raises(UserError, match=words) as caught:
        checked(tmp_path, stages__opd__teacher_prompt=template)
    assert caught.value.key == "stages.opd.teacher_prompt" and caught.value.remedy


def test_rollouts_of_a_problem_get_its_prompt_and_its_label_is_recorded(tmp_path, monkeypatch):
    write_model(tmp_path / "teacher")
    infos = [{"index": "p1", "hint": "3"}, {"index": "p1", "hint": "3"}, {"index": "p2", "hint": "7 8"}]
    rows = [
        {
            "uid": info["index"],
            "raw_prompt": [{"role": "user", "content": "1 + 2 ="}],
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": info,
            "responses": torch.arange(place + 1),
        }
        for place, info in enumerate(infos)
    ]
    written = {}
    monkeypatch.setattr(prompt_renderer.tq, "kv_batch_get", lambda **_: list_of_dict_to_tensordict(rows))
    monkeypatch.setattr(prompt_renderer.tq, "kv_batch_put", lambda fields, **_: written.update(fields))

    class Batch(list):
        keys, partition_id = None, None

    config = composed(
        f"s2d.teacher.path={tmp_path / 'teacher'}",
        "+s2d.teacher_prompt='{hint} {prompt}'",
        f"+s2d.label_ledger={tmp_path / 'verifier'}",
    )
    prompt_renderer.TeacherPrompts(read_opd_config(config), config).write(Batch(rows))
    tokenizer = load_tokenizer(str(tmp_path / "teacher"))
    texts = [tokenizer.decode(row) for row in written[OWN_PROMPTS].unbind()]
    assert texts == ["3 1 + 2 =", "3 1 + 2 =", "7 8 1 + 2 ="]
    assert verifier_calls(tmp_path)["labels_read"] == ["p1", "p2"]
    lines = [line for file in (tmp_path / "verifier").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 2, "once a problem, not once a rollout"
