"""Verifier `reasoning_gym`: every data set of the library, hostile responses, hedges."""

from __future__ import annotations

import inspect
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.errors import UserError

pytest.importorskip("reasoning_gym")
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from tests.support.sandbox.boxes import require_isolation
from verl_s2d.verifiers import reasoning_gym as reasoning_gym_verifier
from verl_s2d.verifiers.final_text import MAX_CHARACTERS, final_text
from verl_s2d.verifiers.reasoning_gym import EVALUATING_SCORERS, SOLUTIONS, check_answer, compute_score


def info(answer: str = "7", dataset: str = "chain_sum") -> dict:
    entry = {"question": "?", "answer": answer, "metadata": {"source_dataset": dataset}}
    return {"index": "p0", "entry": json.dumps(entry)}


def score(response: str, **kwargs) -> float:
    return compute_score("reasoning_gym/chain_sum", response, "", info(**kwargs))


@pytest.mark.parametrize(
    "response",
    [
        *("9 6 7", "7", "so it is 7.", "<answer>7</answer> and 9", "+7", "9 6 7 ="),
        *("It is 7, as the sum shows.", "7,", "**7**", "3 + 4 = 7", "<answer>7.</answer>", "<answer>+7</answer>"),
        *("<think>5 or 6</think>7", "5, then 6. Or 9? No.\nIt is 7.", "9 </think> <answer>7</answer>"),
        *("14 / 2 = 7", "14/2 is 7", "8 - 1 = 7", "2 or 3 steps give 4 + 3 = 7"),
    ],
)
def test_right(response):
    assert score(response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        *("", "17", "7 8", "-7", "- 7 1", "seven", "<answer>8</answer> 7", "<answer></answer>"),
        *("8 or 7", "7 or 8", "8, 7", "8; 7", "8/7", "6-7", "6 to 7", "either 8 or maybe 7", "It is 8, perhaps 7."),
        *("not 7", "It isn't 7.", "<answer>7 or 8</answer>", "<answer>8, 7</answer>", "<answer>not 7</answer>"),
        *("<think><answer>7</answer>", "<think><answer>7</answer></think>", "<think>7</think>", "<think>7"),
    ],
)
def test_wrong_and_part_marks_are_nothing(response):
    assert score(response) == 0.0


def test_negative_and_grouped_numbers():
    assert score("3 -7", answer="-7") == 1.0
    assert score("it is 1,234", answer="1234") == 1.0


def test_answers_that_are_no_numbers_are_the_last_line():
    assert final_text("thinking\n a b c \n", number=False) == "a b c"
    assert final_text(" \n", number=False) is None


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


def test_scorers_that_evaluate_text_are_known():
    """Every scorer of the installed library that evaluates anything must be on the list."""
    evaluator = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
    evaluating = {name for name, (dataset, _) in DATASETS.items() if evaluator.search(source_of_scorer(dataset))}
    # Its parse_expr is a parser of its own for logical formulas.
    assert evaluating - {"propositional_logic"} <= EVALUATING_SCORERS <= DATASETS.keys()


def test_scorers_that_evaluate_do_so_in_the_sandbox(monkeypatch):
    """The answer that makes them run code has the form of the expected one here, as a scorer may let one through."""
    monkeypatch.setattr(reasoning_gym_verifier, "_has_form", lambda *_: True)
    entry = create_dataset("countdown", seed=3, size=1)[0]
    attack = f"__import__('os').kill({os.getpid()}, 9)"
    extra = {"index": "p", "entry": json.dumps(entry)}
    assert compute_score("x", f"<answer>{attack}</answer>", "", extra) == 0.0


@pytest.mark.parametrize("extra", [None, {}, {"entry": "no json"}, {"entry": "[]"}, {"entry": "{}"}])
def test_problems_without_an_entry(extra):
    with pytest.raises(UserError, match="entry"):
        compute_score("x", "7", "7", extra)


def test_unknown_data_set():
    with pytest.raises(UserError, match="no such data set"):
        score("7", dataset="chain_product")


WITHOUT_AN_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
GARBAGE = [
    "",
    " ",
    "\n",
    "I do not know",
    "garbage",
    "[]",
    "{}",
    "nan",
    "inf",
    "-",
    "None",
    "1e999",
    "7 or 8",
    "x" * 99,
]
HEDGES = ("{0} or 8", "8 or {0}", "{0} or {1}", "{1} or {0}", "{0}, 8", "{1}, {0}", "not {0}", "{0} / {1}")
TAGGED_HEDGES = ("{0}\n{1}", "{0} 8", "8 {0}", "maybe {0}", "({0}) ({1})", "the answer is not {0}")
"""Without a tag, the last number or line is the answer."""


def oracle(family: str, seed: int = 3) -> dict:
    return json.loads(json.dumps(create_dataset(family, size=1, seed=seed)[0], default=str))


@pytest.mark.parametrize("family", sorted(DATASETS.keys() - {"composite"}))
def test_every_data_set_takes_its_own_answer_and_no_other(family):
    """Right through JSON; garbage, hedges and other problems' answers are wrong; or the data set is refused."""
    entry = oracle(family)
    extra = {"index": "p", "entry": json.dumps(entry)}
    if family in EVALUATING_SCORERS:
        require_isolation(reasoning_gym_verifier._boxes())
    if family in WITHOUT_AN_ANSWER:
        with pytest.raises(UserError, match="has no answer") as caught:
            check_answer("", extra)
        assert "verifier of your own" in caught.value.remedy
        return

    def score(response: str) -> float:
        return compute_score("x", response, "", extra)

    check_answer("", extra)
    answer = entry["answer"]
    other = next(a for seed in range(4, 40) if (a := oracle(family, seed)["answer"]) != answer)
    for right in ("<answer>{}</answer>", "<think><answer>1</answer></think>\n<answer>\n{}\n</answer>"):
        assert score(right.format(answer)) == 1.0
    hedges = [hedge.format(answer, other) for hedge in HEDGES]
    tagged = [hedge.format(answer, other) for hedge in TAGGED_HEDGES]
    # Moves after the solution may leave it solved.
    tagged += [] if family in SOLUTIONS else [answer + answer]
    wrong = [*GARBAGE, *hedges, f"<think><answer>{answer}</answer></think>"]
    wrong += [f"so <answer>{text}</answer>" for text in (*GARBAGE, *hedges, *tagged)]
    assert [response for response in wrong if score(response)] == []
