"""Verifiers by name and by file, and what they may return."""

from __future__ import annotations

import json

import pytest

from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.mathematics import compute_score
from verl_s2d.verifiers.registry import by_data_source, can_extract, extractor_of, of_source, resolve, score_of

IMPORTS = "import math, numpy\nfrom verl_s2d.verifiers.score import Score\n"


def test_by_name():
    assert resolve("math") is compute_score
    with pytest.raises(UserError, match="Unknown verifier"):
        resolve("reasoning-gym")


def test_by_file(tmp_path):
    first, second = tmp_path / "a" / "verifier.py", tmp_path / "b" / "verifier.py"
    for number, file in enumerate((first, second)):
        file.parent.mkdir()
        file.write_text(
            f"number = {number}\n"
            "def score(**kwargs): return number\n"
            "async def later(**kwargs): return {'score': number}\n"
        )
    assert resolve(f"{first}:score")() == 0 and resolve(f"{second}:score")() == 1
    assert resolve(f"{second}:later")() == {"score": 1}
    for name, said in [
        (f"{first}:absent", "no function"),
        (f"{first}:number", "no function"),
        (f"{tmp_path}/c.py:score", "does not exist"),
    ]:
        with pytest.raises(UserError, match=said):
            resolve(name)


def test_by_file_that_fails_to_import(tmp_path):
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        resolve(f"{tmp_path}/broken.py:score")


@pytest.mark.parametrize(
    "returned",
    [
        *("float('nan')", "float('inf')", "-math.inf", "None", "'1'", "[1.0]", "numpy.float32('nan')", "1j", "10**400"),
        "Score(math.nan)",
        *("{}", "{'score': None}", "{'score': math.nan, 'acc': 1}", "{'score': 1, 'acc': math.nan}"),
    ],
)
def test_what_is_no_finite_number_is_refused(tmp_path, returned):
    file = tmp_path / "v.py"
    file.write_text(f"{IMPORTS}def score(**kwargs): return {returned}\nasync def later(**kwargs): return score()")
    for function in ("score", "later"):
        with pytest.raises(UserError, match="which is no score") as caught:
            resolve(f"{file}:{function}")(solution_str="7")
        assert caught.value.key == "verifier" and caught.value.value == f"{file}:{function}"


@pytest.mark.parametrize(
    "returned", ["1", "True", "numpy.float32(1)", "numpy.bool_(1)", "{'score': -1.0, 'acc': False}", "Score(2)"]
)
def test_numbers_of_any_kind_are_scores(tmp_path, returned):
    (tmp_path / "v.py").write_text(f"{IMPORTS}def score(**kwargs): return {returned}")
    resolve(f"{tmp_path}/v.py:score")(solution_str="7")


def test_a_mapping_without_a_name_is_by_data_source():
    boxed = {"name": "math", "form": "boxed"}
    assert by_data_source("math") is by_data_source(boxed) is by_data_source(json.dumps(boxed)) is None
    several = {"math_dapo": boxed, "openai/gsm8k": "verl"}
    assert by_data_source(json.dumps(several)) == by_data_source(several) == several
    assert of_source(several, "math_dapo") == boxed and of_source(boxed, "anything") == boxed
    problem = {"data_source": "math_dapo", "ground_truth": "1/2", "extra_info": {}}
    assert score_of(several, problem, r"\boxed{0.5}") == 1.0 and score_of(several, problem, "Answer: 0.5") == 0.0
    assert not can_extract(several) and can_extract({"a": boxed, "b": "math"})
    assert extractor_of({"a": boxed, "b": "math"}, "b")("Answer: 7") == "7"
    assert extractor_of({"a": boxed, "b": "math"}, "a")("Answer: 7") is None


@pytest.mark.parametrize(
    ("verifier", "key"),
    [({}, "verifier"), ({"form": "boxed"}, "verifier.form"), ({"a": "math", "b": {"form": "boxed"}}, "verifier.b")],
)
def test_what_is_no_verifier_of_a_data_source_is_refused(verifier, key):
    with pytest.raises(UserError) as caught:
        resolve(verifier)
    assert caught.value.key == key and caught.value.remedy


def test_a_verifier_that_cannot_judge_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "v.py").write_text(
        "from verl_s2d.verifiers.score import Unscored\ndef score(**_): raise Unscored('no judge at :8000')"
    )
    with pytest.raises(UserError, match=r"could not judge .* no judge at :8000"):
        score_of(f"{tmp_path}/v.py:score", {"data_source": "s", "ground_truth": "3", "extra_info": {}}, "3")
