"""Verifiers by name and by file; reasoning-gym's scorers against hostile responses."""

from __future__ import annotations

import inspect
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.errors import UserError
from verl_s2d.verifiers.registry import resolve

pytest.importorskip("reasoning_gym")
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from verl_s2d.verifiers.reasoning_gym import EVALUATING_SCORERS, MAX_CHARACTERS, answer_of, compute_score


def info(answer: str = "7", dataset: str = "chain_sum") -> dict:
    entry = {"question": "?", "answer": answer, "metadata": {"source_dataset": dataset}}
    return {"index": "p0", "entry": json.dumps(entry)}


def score(response: str, **kwargs) -> float:
    return compute_score("reasoning_gym/chain_sum", response, "", info(**kwargs))


@pytest.mark.parametrize("response", ["9 6 7", "7", "so it is 7.", "<answer>7</answer> and 9", "+7", "9 6 7 ="])
def test_right(response):
    assert score(response) == 1.0


@pytest.mark.parametrize(
    "response", ["", "17", "7 8", "-7", "- 7 1", "seven", "<answer>8</answer> 7", "<answer></answer>"]
)
def test_wrong_and_part_marks_are_nothing(response):
    assert score(response) == 0.0


def test_negative_and_grouped_numbers():
    assert score("3 -7", answer="-7") == 1.0
    assert score("it is 1,234", answer="1234") == 1.0


def test_answers_that_are_no_numbers_are_the_last_line():
    assert answer_of("thinking\n a b c \n", "a b c") == "a b c"
    assert answer_of(" \n", "a b c") is None


def test_a_real_entry_of_another_data_set():
    entry = create_dataset("letter_counting", size=1, seed=1)[0]
    extra = {"index": "p", "entry": json.dumps(entry)}
    assert compute_score("x", f"I count {entry['answer']}", "", extra) == 1.0
    assert compute_score("x", "I count 99", "", extra) == 0.0


@given(st.text())
def test_any_response_gets_a_score(response):
    assert score(response) in (0.0, 1.0)


def test_only_the_end_of_a_response_is_read():
    assert score("7" + " " * MAX_CHARACTERS) == 0.0
    assert score("9" * 10_000_000) == 0.0


def source_of_scorer(dataset: type) -> str:
    """The scorer, and the functions of its class and module that it names."""
    source = inspect.getsource(dataset.score_answer)
    module = inspect.getmodule(dataset.score_answer)
    helpers = [vars(dataset).get(n) or vars(module).get(n) for n in re.findall(r"\w+", source)]
    return source + "".join(inspect.getsource(h) for h in helpers if inspect.isfunction(h))


def test_scorers_that_evaluate_text_are_refused():
    """Every scorer of the installed library that evaluates anything must be on the list."""
    evaluator = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
    evaluating = {name for name, (dataset, _) in DATASETS.items() if evaluator.search(source_of_scorer(dataset))}
    # Its parse_expr is a parser of its own for logical formulas.
    assert evaluating - {"propositional_logic"} <= EVALUATING_SCORERS <= DATASETS.keys()
    with pytest.raises(UserError, match="as Python code"):
        score("1", dataset="countdown")


@pytest.mark.parametrize("extra", [None, {}, {"entry": "no json"}, {"entry": "[]"}, {"entry": "{}"}])
def test_problems_without_an_entry(extra):
    with pytest.raises(UserError, match="entry"):
        compute_score("x", "7", "7", extra)


def test_unknown_data_set():
    with pytest.raises(UserError, match="no such data set"):
        score("7", dataset="chain_product")


def test_by_name():
    assert resolve("reasoning_gym") is compute_score
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
