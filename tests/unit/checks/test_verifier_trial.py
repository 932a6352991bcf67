"""Verifiers are tried on the data: truths and solutions of each set score, or the recipe is refused with the remedy."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.workflow.project import write_project
from verl_s2d.checks.inputs.answers import check_answers
from verl_s2d.checks.inputs.verifier_trial import try_on_data
from verl_s2d.data.problems import Problem
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.shared.node_settings import verifier_argument
from verl_s2d.verifiers.trial import Trial, try_verifier

BOXED = {"name": "math", "form": "boxed"}
HASHES = 'output the final answer after "####".'


def problem(number: int, truth: object, *, source: str = "mine", asks: str = "", **info) -> Problem:
    text = f"Question {number}. {asks}"
    return Problem(f"p{number}", [{"role": "user", "content": text}], source, truth, {"index": f"p{number}", **info})


def gsm8k(number: int, asks: str = HASHES) -> Problem:
    """Build a row as verl's gsm8k.py writes it."""
    truth = str(2 * number + 3)
    solution = f"She has {number}+{number + 3}=<<{number}+{number + 3}={truth}>>{truth}.\n#### {truth}"
    return problem(number, truth, source="openai/gsm8k", asks=asks, answer=solution, split="train")


def tried(directory: Path, verifier, problems: list[Problem], own: str | None = None) -> list[str]:
    recipe = write_project(directory, verifier=verifier)
    if own is not None:
        (directory / "verifier.py").write_text(own)
    plan = make_plan(load_recipe(recipe), run_dir=directory / "run", rows=["half-split"])
    return try_on_data(plan, {directory / "train.parquet": ("data.train", problems)}).text().splitlines()


def rows(problems: list[Problem]) -> list[dict]:
    return [
        {"data_source": p.data_source, "ground_truth": p.ground_truth, "extra_info": p.extra_info} for p in problems
    ]


def test_a_scored_pair_is_shown_for_each_set(tmp_path):
    (line,) = tried(tmp_path, "math", [problem(i, str(55 + i)) for i in range(100)])
    assert line == r"data.train: truth 55: \boxed{55} -> 1, I do not know -> 0"


def test_solutions_in_a_form_that_the_verifier_does_not_read_are_refused(tmp_path):
    """A run on these prompts would have reward 0 for every right answer."""
    with pytest.raises(UserError, match="0 of 25 solutions of the data score") as caught:
        tried(tmp_path, BOXED, [gsm8k(i) for i in range(40)])
    assert caught.value.key == "data.train: extra_info" and r"ask for \boxed{} in the prompts" in caught.value.remedy
    asking = [gsm8k(i, asks=r"Put your final answer within \boxed{}.") for i in range(40)]
    (line,) = tried(tmp_path, BOXED, asking)
    assert "0 of 25 solutions" in line, "the prompts ask for what the verifier reads"


@pytest.mark.parametrize("verifier", ["math", "verl"])
def test_gsm8k_as_verl_writes_it(verifier):
    trial = try_verifier(verifier, rows([gsm8k(i) for i in range(8)]), "data.train")
    assert (trial.right, trial.truths, trial.solved, trial.solutions) == (8, 8, 8, 8)


@pytest.mark.parametrize("verifier", ["math", "verl"])
def test_math_with_its_solutions(verifier):
    problems = [
        problem(
            i,
            rf"\frac{{{i}}}{{7}}",
            source="DigitalLearningGmbH/MATH-lighteval",
            solution=rf"So \boxed{{\frac{{{i}}}{{7}}}}, which is right.",
        )
        for i in range(1, 6)
    ]
    trial = try_verifier(verifier, rows(problems), "data.train")
    assert (trial.right, trial.solved, trial.solutions, trial.form) == (5, 5, 5, r"\boxed{}")


@pytest.mark.parametrize(
    ("source", "said"), [("mine", "no scorer"), ("numina_olympiads", "Python code"), ("apps", "Python")]
)
def test_data_sources_that_verl_cannot_score_are_refused(source, said):
    with pytest.raises(UserError, match=said) as caught:
        try_verifier("verl", rows([problem(0, "1", source=source)]), "data.train")
    assert caught.value.key == "data_source" and caught.value.value == source


def test_truths_that_never_score_are_refused(tmp_path, monkeypatch):
    trial = Trial("1/2", "#### 1/2", 0.0, None, 0.0, 25, 0, 0, 0)
    monkeypatch.setattr("verl_s2d.checks.inputs.verifier_trial.try_verifier", lambda *_: trial)
    with pytest.raises(UserError, match="0 of 25 ground truths") as caught:
        tried(tmp_path, "math", [problem(0, "1/2")])
    assert caught.value.key == "data.train: reward_model.ground_truth" and caught.value.value == "1/2"


TYPED = """
import datetime, decimal
def score(data_source, solution_str, ground_truth, extra_info=None):
    assert extra_info['date'].year == 2024 and extra_info['price'] + decimal.Decimal('0.5') == 2
    assert extra_info['picture'][0] == 137 and extra_info['at'] < datetime.datetime(2025, 1, 1)
    return float(solution_str == f"It is {ground_truth}")
"""


def test_a_verifier_of_ones_own_gets_rows_with_their_types(tmp_path):
    info = {
        "date": datetime.date(2024, 1, 1),
        "price": Decimal("1.50"),
        "picture": b"\x89PNG",
        "at": datetime.datetime(2024, 5, 6),
    }
    shown, warning = tried(tmp_path, "verifier.py:score", [problem(i, str(i), **info) for i in range(3)], TYPED)
    assert "-> 0, I do not know -> 0" in shown and warning.startswith("warning: data.train")


@pytest.mark.parametrize(
    ("returned", "said"),
    [("float('nan')", "no score"), ("None", "no score"), ("1.0 if solution_str else [][1]", "IndexError")],
)
def test_a_verifier_of_ones_own_that_fails_is_refused(tmp_path, returned, said):
    with pytest.raises(UserError, match=said) as caught:
        tried(tmp_path, "verifier.py:score", [problem(0, "1")], f"def score(solution_str, **_): return {returned}")
    assert (
        caught.value.key == "verifier"
        and "finite number" in caught.value.remedy
        and "problem p0 of data.train" in str(caught.value)
    )


def test_what_a_verifier_prints_is_no_answer(tmp_path):
    own = """
def score(solution_str, ground_truth, **_):
    print('S2D not json')
    print('S2D {"problem": "made up", "key": "k", "remedy": "r"}')
    return float(ground_truth in solution_str)
"""
    (shown,) = tried(tmp_path, "verifier.py:score", [problem(i, str(i)) for i in range(9, 12)], own)
    assert "-> 1, I do not know -> 0" in shown


def test_a_verifier_that_scores_everything_alike_is_a_warning(tmp_path):
    solved = [problem(i, str(i), solution=f"A long way leads to the answer {i}.") for i in range(6)]
    _, warning = tried(tmp_path, "verifier.py:score", solved, "def score(**_): return 1")
    assert "'I do not know' as high a score (1) as any ground truth" in warning


def test_each_data_source_is_tried_with_its_own_verifier(tmp_path):
    own = "def score(solution_str, ground_truth, **_): return float(solution_str == f'<answer>{ground_truth}</answer>')"
    problems = [problem(i, str(50 + i), source=source) for i, source in enumerate(["sums", "math"] * 6)]
    lines = tried(tmp_path, {"sums": "verifier.py:score", "math": BOXED}, problems, own)
    assert sorted(lines) == [
        r"data.train (math): truth 51: \boxed{51} -> 1, I do not know -> 0",
        "data.train (sums): truth 50: <answer>50</answer> -> 1, I do not know -> 0",
    ]


@pytest.mark.parametrize(
    ("sources", "value"), [(["sums", "code"], "code"), (["sums"], "math"), (["sums", "math"], None)]
)
def test_data_sources_and_verifiers_have_to_match(tmp_path, sources, value):
    recipe = load_recipe(write_project(tmp_path, verifier={"sums": "math", "math": BOXED}))
    plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"])
    files = {tmp_path / "train.parquet": ("data.train", [problem(i, "3", source=s) for i, s in enumerate(sources)])}
    if value is None:
        check_answers(plan, files)
        return
    with pytest.raises(UserError) as caught:
        check_answers(plan, files)
    assert caught.value.key == "verifier" and caught.value.value == value


def test_the_file_of_each_own_verifier_is_an_input(tmp_path):
    def target(verifier):
        recipe = load_recipe(write_project(tmp_path, verifier=verifier))
        for name in ("one", "two"):
            (tmp_path / f"{name}.py").write_text(f"def score(**_): return 1.0  # {name}")
        plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["direct-grpo"])
        return next(node for node in plan.order if node.stage.kind == "grpo")

    both = {"sums": "one.py:score", "math": BOXED, "code": "two.py:score"}
    node = target(both)
    assert json.loads(verifier_argument(node)) == {
        "sums": f"{tmp_path}/one.py:score",
        "math": BOXED,
        "code": f"{tmp_path}/two.py:score",
    }
    assert target(both).digest == node.digest != target(both | {"code": "one.py:score"}).digest
