"""The JSON schema of a recipe and the page of its keys: made from the models, equal to the files in the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jsonschema
import pytest

from tests.support.paths import ROOT
from verl_s2d.recipe.load import _Loader as Loader
from verl_s2d.recipe.load import load_recipe
from verl_s2d.starter.recipe_reference import recipe_reference
from verl_s2d.starter.recipe_schema import recipe_schema, schema_line

RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))
FILE = ROOT / "recipes" / "recipe.schema.json"


@pytest.fixture(scope="module")
def schema():
    return recipe_schema()


@pytest.fixture(scope="module")
def valid(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


def least(**more):
    data = {"train": "a.parquet", "eval": {"b": "b.parquet"}, "prompt_tokens": 8, "response_tokens": 8}
    return {"name": "a", "student": "s", "teacher": "t", "verifier": "math", "data": data, **more}


def test_files_are_those_that_the_code_writes(schema):
    assert json.loads(FILE.read_text()) == schema, "verl-s2d schema > recipes/recipe.schema.json"
    page = (ROOT / "docs" / "recipe-reference.md").read_text()
    assert page == recipe_reference(), "verl-s2d schema --markdown > docs/recipe-reference.md"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_project_are_valid_and_name_it(path, valid):
    assert valid(Loader(path.read_text()).get_single_data())
    first = path.read_text().splitlines()[0]
    place = first.removeprefix(schema_line("")).strip()
    assert first == schema_line(place) and (path.parent / place).resolve() == FILE


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stages": {"opd": {"steps": 2, "signal": "jsd"}}},
        {"stages": {"opd": {"steps": 2, "signal": {"type": "exopd", "lambda": 1.5, "tail_floor": 0.1}}}},
        {"stages": {"opd": {"steps": 2, "signal": {"type": "mine.py:Mine", "anything": 1}}}},
        {"stages": {"opd": {"steps": 100, "until": {"plateau": "divergence"}}}},
        {"stages": {"student_rl": {"steps": 2, "credit": {"type": "rlsd", "lambda": 0.5}}}},
        {"models": {"coder": "x/y"}, "alarms": {"not_finite": "stop", "kl_blow_up": {"ratio": 5}}},
        {"cluster": {"warm_start": False, "grace_seconds": 10}},
    ],
)
def test_what_the_loader_takes_it_takes(more, valid):
    assert valid(least(**more))


@pytest.mark.parametrize(
    "more",
    [
        {"stags": {}},
        {"seeds": "0"},
        {"stages": {"opd": {"signal": "jsd"}}},
        {"stages": {"opd": {"steps": 0}}},
        {"stages": {"opd": {"steps": 2, "signal": "jds"}}},
        {"stages": {"opd": {"steps": 2, "signal": {"type": "jsd", "lambda": 1}}}},
        {"stages": {"student_rl": {"steps": 2, "credit": {"type": "kdrl", "lambda": 1}}}},
        {"alarms": {"not_finite": "halt"}},
    ],
)
def test_what_the_loader_refuses_it_refuses(more, valid):
    assert not valid(least(**more))


def test_short_forms_load(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(least(stages={"opd": {"steps": 100, "until": {"plateau": "divergence"}}})))
    assert load_recipe(path).stages.opd.until.plateau.window == 30


def _properties(schema) -> Iterator[tuple[str, dict]]:
    for name, section in {"Recipe": schema, **schema["$defs"]}.items():
        for form in (section, *section.get("anyOf", ())):
            yield from ((f"{name}.{key}", entry) for key, entry in form.get("properties", {}).items())


def test_every_key_is_described(schema):
    bare = {key for key, entry in _properties(schema) if "description" not in entry}
    assert not {key for key in bare if not re.match(r"(Signal|Credit)\.type$|Alarms\.", key)}
