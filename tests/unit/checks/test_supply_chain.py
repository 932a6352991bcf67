"""Code in a checkpoint runs only where a recipe asks for it, and foreign weights are never unpickled."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.workflow.damage import flip, truncate
from tests.support.workflow.project import write_model, write_project
from verl_s2d.checks import check_plan
from verl_s2d.data.weights import check_weights
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

SOURCES = sorted([*(ROOT / "verl_s2d").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
LOADERS = (
    "from_pretrained",
    "from_config",
    "hf_tokenizer",
    "hf_processor",
    "LLM",
    "AsyncLLM",
    "EngineArgs",
    "load_dataset",
)
UNPICKLE = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("joblib", "load"), ("dill", "load")}
UNPICKLE |= {("yaml", "unsafe_load"), ("yaml", "full_load"), ("marshal", "load"), ("marshal", "loads")}


def calls():
    """(file, call, name of what is called, what it is called on) everywhere in the package and the recipes."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                on = function.value.id if isinstance(getattr(function, "value", None), ast.Name) else ""
                yield path, node, getattr(function, "attr", getattr(function, "id", "")), on


def test_nothing_here_loads_with_remote_code_unless_told():
    seen = 0
    for path, call, name, _ in calls():
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":
                seen += 1
                literal = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert literal is not True, f"{path}:{call.lineno}"
            # **options to a loader could hold anything, but for what the call names: Python refuses it twice.
            named = {other.arg for other in call.keywords}
            assert keyword.arg or name not in LOADERS or "trust_remote_code" in named, f"{path}:{call.lineno}"
    assert seen >= 8, "the walk finds the calls it is meant to"


def test_nothing_here_unpickles():
    for path, call, name, on in calls():
        assert (on, name) not in UNPICKLE, f"{path}:{call.lineno}"
        assert not any(k.arg == "allow_pickle" for k in call.keywords), f"{path}:{call.lineno}"


def flags(plan) -> dict[str, dict[str, str]]:
    """Stage -> the arguments of its command that are about remote code."""
    found = {}
    for node in plan.order:
        argv = node.stage.command(node, plan.context, 1).argv
        pairs = (argument.lstrip("+").split("=", 1) for argument in argv if "trust_remote_code=" in argument)
        found[node.name] = {key.removesuffix(".trust_remote_code"): value for key, value in pairs}
    return found


def test_every_model_of_every_command_is_told_no(tmp_path):
    plan = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "run", rows=["all"])
    models = {"grpo": 1, "opd": 2, "warmup": 2, "rollouts": 1, "evaluate": 1, "slices": 0}
    for node in plan.order:
        told = flags(plan)[node.name]
        assert len(told) == models[node.kind] and set(told.values()) <= {"false"}


def test_who_asks_is_given_it_for_that_model_and_what_is_trained_from_it(tmp_path):
    student = {"model": "student", "trust_remote_code": True}
    plan = make_plan(load_recipe(write_project(tmp_path, student=student)), rows=["half-split", "same-size-teacher"])
    told = flags(plan)
    assert told["teacher-rl-1h"] == {"actor_rollout_ref.model": "false"}
    assert told["rollouts-1h"] == {"trust_remote_code": "false"}
    assert told["warmup-1h"] == {"model": "true", "s2d.teacher": "false"}
    assert told["opd-1h"] == {"actor_rollout_ref.model": "true", "s2d.teacher": "false"}
    assert told["student-rl-2h"] == {"actor_rollout_ref.model": "true"}
    assert told["evaluate-half-split"] == {"trust_remote_code": "true"}
    assert told["teacher-rl-all-same-size"] == {"actor_rollout_ref.model": "true"}
    assert told["opd-all-same-size"] == {"actor_rollout_ref.model": "true", "s2d.teacher": "true"}


def test_models_of_scripts_can_be_trusted_too(tmp_path):
    (tmp_path / "make.py").write_text("")
    teacher = {"script": "make.py", "trust_remote_code": True}
    told = flags(make_plan(load_recipe(write_project(tmp_path, teacher=teacher)), rows=["raw-teacher"]))
    assert told["opd-all-raw"] == {"actor_rollout_ref.model": "false", "s2d.teacher": "true"}
    assert told["rollouts-all-raw"] == {"trust_remote_code": "true"}


def test_trusting_makes_another_model_and_not_trusting_changes_nothing(tmp_path):
    def digests(**changes) -> dict[str, str]:
        return {n.name: n.digest for n in make_plan(load_recipe(write_project(tmp_path, **changes))).order}

    plain = digests()
    assert digests(student={"model": "student", "trust_remote_code": False}) == plain
    trusted = digests(student={"model": "student", "trust_remote_code": True})
    changed = {name for name in plain if plain[name] != trusted[name]}
    assert changed == {"warmup-1h", "opd-1h", "student-rl-2h", "evaluate-half-split", "evaluate-cold-student"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stages__student_rl__verl": {"actor_rollout_ref.model.trust_remote_code": True}}, "trust_remote_code"),
        ({"stages__warmup__verl": {"model.trust_remote_code": True}}, "trust_remote_code"),
        ({"stages__opd__verl": {"+s2d.teacher.trust_remote_code": True}}, "trust_remote_code"),
        ({"student": {"model": "student", "trust_remote_code": "yes"}}, "student.trust_remote_code"),
    ],
)
def test_there_is_one_door(tmp_path, changes, key):
    with pytest.raises(UserError) as caught:
        make_plan(load_recipe(write_project(tmp_path, **changes)))
    assert key in caught.value.key and "trust_remote_code" in f"{caught.value.remedy} {caught.value.key}"


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (pickled, "pickled (pytorch_model.bin)"),
        (lambda m: (m / "model.safetensors").unlink(), "no weights"),
        (lambda m: truncate(m / "model.safetensors"), "model.safetensors is damaged"),
        (lambda m: flip(m / "model.safetensors", 0.0), "model.safetensors is damaged"),
    ],
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_foreign_weights_are_refused_before_anything_starts(tmp_path, role, harm, word):
    recipe = write_project(tmp_path)
    harm(tmp_path / role)
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    with pytest.raises(UserError) as caught:
        check_plan(plan)
    assert word in str(caught.value) and caught.value.key == role and caught.value.remedy


def test_a_pickle_beside_safetensors_does_no_harm(tmp_path):
    model = write_model(tmp_path / "m")
    shutil.copy(model / "model.safetensors", model / "pytorch_model.bin")
    check_weights(model, "student")


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["config.json", "pytorch_model-00001-of-00002.bin"], True),
        (["config.json", "consolidated.00.pth"], True),
        (["config.json", "pytorch_model.bin", "model.safetensors"], False),
        ([], False),
    ],
)
def test_hub_repositories_are_looked_into(monkeypatch, names, refused):
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision: names)
    if not refused:
        check_weights("some/model", "student")
        return
    with pytest.raises(UserError, match="pickled"):
        check_weights("some/model", "student", revision="main")


def test_a_hub_that_cannot_be_reached_decides_nothing(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    check_weights("some/model-that-nobody-has", "student")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_verl_command_is_refused_a_pickled_model_too(tmp_path, role):
    model_pair = pytest.importorskip("verl_s2d.teachers.model_pair")
    models = {name: write_model(tmp_path / name) for name in ("student", "teacher")}
    pickled(models[role])
    with pytest.raises(UserError, match="pickled") as caught:
        model_pair.check_tokens(*map(str, models.values()), student_key="student", teacher_key="teacher")
    assert caught.value.key == role
