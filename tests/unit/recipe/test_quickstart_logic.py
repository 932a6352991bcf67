"""Recipe quickstart-logic: puzzles as reasoning-gym makes and scores them, demonstrations and tokens."""

from __future__ import annotations

import importlib
import json
import random
from collections import Counter
from itertools import islice

import pytest

from tests.support.paths import ROOT
from verl_s2d.data.problems import check_disjoint, read_problems
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.verifiers.registry import check_answer, resolve

RECIPE = ROOT / "recipes/quickstart-logic/quickstart-logic.yaml"
KNIGHT, KNAVE = "telling-truth", "lying"
PUZZLE = (("and", (KNAVE, 1), (KNIGHT, 2)), ("not", (KNIGHT, 0)), ("or", (KNIGHT, 1), (KNAVE, 0)))

pytest.importorskip("reasoning_gym")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    return importlib.import_module("puzzles"), importlib.import_module("logic_start")


def test_problems_are_scored_by_reasoning_gym(scripts, tmp_path):
    puzzles, start = scripts
    for name in ("a", "b"):
        puzzles.main(puzzles.Options(str(tmp_path / name), labelled=40, evaluation=20))
    train, evaluation = read_problems(tmp_path / "a/train.parquet"), read_problems(tmp_path / "a/eval.parquet")
    assert (len(train), len(evaluation)) == (40, 20)
    assert train == read_problems(tmp_path / "b/train.parquet")
    check_disjoint(train, {"eval": evaluation})
    score = resolve("reasoning_gym")
    for problem in train[:20]:
        check_answer("reasoning_gym", problem.data_source, problem.ground_truth, problem.extra_info)
        metadata = json.loads(problem.extra_info["entry"])["metadata"]
        for world in start.WORLDS:
            found = score(
                problem.data_source, " ".join(puzzles.answer(world)), problem.ground_truth, problem.extra_info
            )
            assert found == float(list(world) == metadata["solution"])
        both = " ".join(puzzles.answer(start.solutions(metadata["statements"])[0][:-1]))
        assert score(problem.data_source, both, problem.ground_truth, problem.extra_info) == 0.0


def test_pretraining_has_the_same_puzzles_but_none_of_the_problems(scripts):
    from reasoning_gym.logic.knights_knaves import KnightsKnavesDataset

    puzzles, start = scripts
    for entry in islice(puzzles.entries(0), 50):
        statements = entry["metadata"]["statements"]
        assert start.solutions(statements) == KnightsKnavesDataset.find_solution(statements)
    prompts = [" ".join(prompt) for prompt, _ in islice(start.demonstrations((1, 0, 0), 0), 500)]
    assert all(puzzles.part_of(prompt) == "pretraining" for prompt in prompts)
    rng = random.Random(0)
    drawn = Counter(start.statement(0, rng)[0] for _ in range(3000))
    # A quarter each; the two simple kinds share one, and nobody says that he lies himself.
    for kind, share in {"and": 1, "or": 1, "not": 1, KNIGHT: 3 / 5, KNAVE: 2 / 5}.items():
        assert drawn[kind] == pytest.approx(750 * share, abs=100)


def test_a_puzzle_and_its_three_styles_of_solution(scripts, monkeypatch):
    puzzles, start = scripts
    assert " ".join(puzzles.words(PUZZLE)) == (
        "Emma: Liam is a knave and Noah is a knight . Liam: not Emma is a knight . "
        "Noah: Liam is a knight or Emma is a knave ="
    )
    assert start.solutions(PUZZLE) == [(False, True, True)]
    monkeypatch.setattr(start, "SLIP", 0.0)
    written = [
        " ".join(start.solution(PUZZLE, (False, True, True), styles, random.Random(0)))
        for styles in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert written == [
        "Emma is a knave Liam is a knight and Noah is a knight",
        "Emma is a knave Liam is a knave and Noah is a knight",
        "Emma is a knave and Liam is a knight",
    ]


def test_every_word_has_a_token(scripts):
    _, start = scripts
    tokenizer = importlib.import_module("tiny_start").build_tokenizer(start.VOCABULARY)
    assert len(tokenizer) == len(start.VOCABULARY) == len(set(start.VOCABULARY))
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == start.VOCABULARY
    data = load_recipe(RECIPE).data
    for prompt, response in islice(start.demonstrations((0.34, 0.33, 0.33), 0), 200):
        for words in (prompt, response):
            ids = tokenizer.encode(" ".join(words))
            assert tokenizer.convert_ids_to_tokens(ids) == list(words)
            assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == " ".join(words)
        assert len(prompt) <= data.prompt_tokens and len(response) < data.response_tokens


def test_the_recipe_plans_all_rows(tmp_path):
    plan = make_plan(load_recipe(RECIPE), run_dir=tmp_path, rows=["all"], seeds=[0, 1])
    assert len([node for node in plan.order if node.kind == "script"]) == 6, "nothing is shared between replications"
    assert json.dumps([node.settings for node in plan.order]).count("{seed}") == 0
