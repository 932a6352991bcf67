"""A generation_config.json that transformers would not write with a checkpoint is refused before anything starts."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import write_project
from tests.support.workflow.refusal import refuse
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.saved_files import check_saved_files
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

IMPOSSIBLE = {"do_sample": False, "temperature": 0.6, "eos_token_id": 1}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_it_is_refused_with_the_file_and_the_reason(role, tmp_path):
    file = tmp_path / role / "generation_config.json"
    error = refuse(tmp_path, role, "temperature", "a checkpoint", prepare=lambda: file.write_text(text(IMPOSSIBLE)))
    assert error.value == str(file)


def test_without_the_file_it_is_made_of_config_json(tmp_path):
    """Some published models have pad_token_id -1 there."""

    def prepare() -> None:
        config = json.loads((tmp_path / "student" / "config.json").read_text())
        (tmp_path / "student" / "config.json").write_text(
            text({**config, "model_type": "llama", "pad_token_id": -1, "temperature": 0.6})
        )

    assert refuse(tmp_path, "student", "pad_token_id", prepare=prepare).value.endswith("config.json")


def test_both_models_are_told_at_once(tmp_path):
    def prepare() -> None:
        for role in ("student", "teacher"):
            (tmp_path / role / "generation_config.json").write_text(text({**IMPOSSIBLE, "top_p": 0.9}))

    error = refuse(tmp_path, "", prepare=prepare)
    assert {fault.key for fault in (error, *error.also)} == {"student", "teacher"}


@pytest.mark.parametrize(
    ("given", "processes"),
    [({"eos_token_id": 1}, 0), ({"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": [1]}, 1)],
)
def test_one_that_can_be_written_is_taken_and_costs_a_process_only_where_it_may_fail(
    given, processes, tmp_path, monkeypatch
):
    recipe, started = write_project(tmp_path), []
    (tmp_path / "student" / "generation_config.json").write_text(text(given))
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    monkeypatch.setattr("verl_s2d.checks.inputs.saved_files._known", {})
    real = check_saved_files.__globals__["Probe"]
    monkeypatch.setitem(check_saved_files.__globals__, "Probe", lambda *a, **k: started.append(a) or real(*a, **k))
    check_plan(plan)
    assert len(started) == processes


def text(given: dict) -> str:
    return json.dumps(given)
