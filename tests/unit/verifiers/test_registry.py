"""Verifiers by name and by file, and what they may return."""

from __future__ import annotations

import pytest

from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.mathematics import compute_score
from verl_s2d.verifiers.registry import resolve


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
        *("{}", "{'score': None}", "{'score': math.nan, 'acc': 1}", "{'score': 1, 'acc': math.nan}"),
    ],
)
def test_what_is_no_finite_number_is_refused(tmp_path, returned):
    file = tmp_path / "v.py"
    file.write_text(
        f"import math, numpy\ndef score(**kwargs): return {returned}\nasync def later(**kwargs): return score()"
    )
    for function in ("score", "later"):
        with pytest.raises(UserError, match="which is no score") as caught:
            resolve(f"{file}:{function}")(solution_str="7")
        assert caught.value.key == "verifier" and caught.value.value == f"{file}:{function}"


@pytest.mark.parametrize(
    "returned", ["1", "True", "numpy.float32(1)", "numpy.bool_(1)", "{'score': -1.0, 'acc': False}"]
)
def test_numbers_of_any_kind_are_scores(tmp_path, returned):
    (tmp_path / "v.py").write_text(f"import numpy\ndef score(**kwargs): return {returned}")
    resolve(f"{tmp_path}/v.py:score")(solution_str="7")
