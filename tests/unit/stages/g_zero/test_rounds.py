"""The row g-zero: rounds of prompts that the student makes, and settings that are refused."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import write_problems, write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.workflow.failures import StageFailed


def plan_of(directory, section=None, **changes):
    recipe = write_project(directory, **{"rows": ["g-zero"], "stages__g_zero": section or {}} | changes)
    return make_plan(load_recipe(recipe), run_dir=directory / "run")


def test_each_round_proposes_with_the_student_of_the_round_before(tmp_path):
    plan = plan_of(tmp_path, {"rounds": 2, "proposals": 100})
    nodes = {node.name: node for node in plan.order}
    first, second = nodes["g-zero-1"], nodes["g-zero-2"]
    assert first.externals["model"] == nodes["warmup-prompts-g-zero-1"].externals["model"]
    assert second.inputs["model"] is nodes["opd-prompts-g-zero-1"] and second.inputs["earlier.1"] is first
    assert "rollouts-prompts-g-zero-2" not in nodes
    pool = nodes["opd-prompts-g-zero-2"].inputs["slices"]
    assert pool.inputs["prompts"] is second and pool.settings["policy"] == "drop"
    assert nodes["rollouts-prompts-g-zero-1"].inputs["slices"].inputs["prompts"] is first
    assert first.settings["least"] == 4 and slice_size(plan, nodes["opd-prompts-g-zero-2"]) is None
    argv = second.stage.command(second, plan.context, 1).argv
    known = next(json.loads(a.partition("=")[2]) for a in argv if a.startswith("known="))
    assert [name.rpartition("/")[2] for name in known] == ["all.parquet", "held.parquet", "prompts.parquet"]
    assert second.stage.sequences(second, None) == 200
    assert "rounds" not in second.settings and not any("rounds=" in argument for argument in argv)


def test_validation_problems_are_not_proposed(tmp_path):
    write_problems(tmp_path / "valid.parquet", range(3), prefix="valid")
    plan = plan_of(tmp_path, data__validation="valid.parquet", stages__teacher_rl__validate_every=2)
    node = next(node for node in plan.order if node.kind == "g_zero")
    argv = node.stage.command(node, plan.context, 1).argv
    assert any(a.startswith("known=") and "valid.parquet" in a for a in argv)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"pattern": "(?P<question>.+"}, "pattern"),
        ({"pattern": "(?P<question>.+)"}, "pattern"),
        ({"hint_prompt": "{question}"}, "hint_prompt"),
        ({"hint_prompt": "{question} {hint} {answer}"}, "hint_prompt"),
        ({"hint_prompt": "{question} {hint"}, "hint_prompt"),
        ({"percentiles": [50, 0]}, "percentiles"),
        ({"percentiles": [0, 101]}, "percentiles[1]"),
        ({"question_characters": [20]}, "question_characters"),
        ({"template": "box"}, "template"),
        ({"rounds": 0}, "rounds"),
        ({"prompts": []}, "prompts"),
        ({"proposal": 3}, "proposal"),
    ],
)
def test_settings_that_are_refused(tmp_path, section, key):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, section)
    assert caught.value.key == f"stages.g_zero.{key}" and caught.value.remedy


def test_the_row_needs_the_section_and_no_pool(tmp_path):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, stages__g_zero=None)
    assert caught.value.key == "stages.g_zero"
    with pytest.raises(UserError, match="No row of the recipe reads prompts") as caught:
        plan_of(tmp_path, data__prompts="more.jsonl")
    assert caught.value.key == "data.prompts"


def test_a_result_without_counts_is_no_result(tmp_path):
    node = next(node for node in plan_of(tmp_path).order if node.kind == "g_zero")
    for name in ("prompts.parquet", "proposals.parquet"):
        (tmp_path / name).write_text("")
    for text in ("{", '{"prompts": 0, "sampled_tokens": 5}', '{"prompts": 4}'):
        (tmp_path / "g_zero.json").write_text(text)
        with pytest.raises(StageFailed, match="incomplete"):
            node.stage.finalize(node, tmp_path)
    (tmp_path / "g_zero.json").write_text('{"prompts": 4, "sampled_tokens": 70}')
    node.stage.finalize(node, tmp_path)
    ledger = node.stage.ledger(node, tmp_path, 1.0)
    assert ledger["sampled_tokens"] == 70 and not ledger["labels_read"] and not ledger["verifier_calls"]
