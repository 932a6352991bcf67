"""Recipe quickstart-code: programs, their tests in the sandbox, demonstrations and tokens."""

from __future__ import annotations

import importlib
import json
import random
from itertools import islice

import pytest

from tests.support.paths import ROOT
from tests.support.sandbox.boxes import require_isolation
from verl_s2d.data.problems import check_disjoint, read_problems
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sandbox.sandbox import shared
from verl_s2d.stages.planning import make_plan
from verl_s2d.verifiers.registry import check_answer, check_solution, score_of

RECIPE = ROOT / "recipes/quickstart-code/quickstart-code.yaml"

pytest.importorskip("reasoning_gym")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    return importlib.import_module("programs"), importlib.import_module("code_start")


@pytest.fixture(scope="module")
def boxes():
    require_isolation(shared())
    yield
    shared().close()


def test_problems(scripts, tmp_path):
    programs, _ = scripts
    for name in ("a", "b"):
        programs.main(programs.Options(str(tmp_path / name), labelled=256, evaluation=150))
    train, evaluation = read_problems(tmp_path / "a/train.parquet"), read_problems(tmp_path / "a/eval.parquet")
    assert (len(train), len(evaluation)) == (256, 150)
    assert train == read_problems(tmp_path / "b/train.parquet")
    check_disjoint(train, {"eval": evaluation})
    assert all(programs.part_of(problem.text) == "problems" for problem in train)
    shown = {line.prompt() for line in islice(programs.lines("pretraining", 1), 2000)}
    assert not shown & {problem.text for problem in [*train, *evaluation]}
    other = {problem["prompt"][0]["content"] for problem in islice(programs.problems(1), 256)}
    assert len(other & {problem.text for problem in train}) < 60


def test_the_sandbox_grants_the_right_style_and_refuses_the_others(scripts, boxes):
    programs, start = scripts
    row = next(programs.problems(0))
    problem = {
        "data_source": row["data_source"],
        "ground_truth": row["reward_model"]["ground_truth"],
        "extra_info": row["extra_info"],
    }
    check_answer("code", **problem)
    assert check_solution("code", **problem)
    line = next(programs.lines("problems", 0))
    rng, tokenizer = random.Random(0), importlib.import_module("tiny_start").build_tokenizer(start.VOCABULARY)
    for styles, expected in (((1, 0, 0), 1.0), ((0, 1, 0), 0.0), ((0, 0, 1), 0.0)):
        while True:
            # A slip may hide the style.
            tokens = start.program(line, styles, rng)
            if str(line.slope) in tokens or styles[2]:
                break
        text = tokenizer.decode(tokenizer.convert_tokens_to_ids(tokens))
        assert score_of("code", problem, text) == expected, text
    assert score_of("code", problem, f"return {line.slope}") == 0.0


def test_demonstrations(scripts, monkeypatch):
    programs, start = scripts
    line = programs.Line(2, 7, -3)
    assert line.prompt() == "2 -> 7 , 3 -> 4 :" and [line.at(x) for x in (2, 3, 12)] == [7, 4, -23]
    monkeypatch.setattr(start, "SLIP", 0.0)
    bodies = [
        " ".join(start.program(line, styles, random.Random(0))[1:-1]) for styles in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert bodies == ["( x - 2 ) * -3 + 7", "x * -3 + 7", "( x - 2 ) + 7"]
    monkeypatch.setattr(start, "SLIP", 1.0)
    rng = random.Random(0)
    written = {word for _ in range(300) for word in start.program(programs.Line(9, 60, 9), (1, 0, 0), rng)}
    assert {"58", "62", "8"} <= written <= set(start.VOCABULARY) and "11" not in written


def test_every_word_has_a_token_and_a_program_survives_them(scripts):
    _, start = scripts
    tokenizer = importlib.import_module("tiny_start").build_tokenizer(start.VOCABULARY)
    assert len(tokenizer) == len(start.VOCABULARY) == len(set(start.VOCABULARY))
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == start.VOCABULARY
    for prompt, response in islice(start.demonstrations((0.34, 0.33, 0.33), 0), 200):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" ".join(prompt))) == list(prompt)
        ids = tokenizer.convert_tokens_to_ids(list(response))
        text = tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True)
        assert tokenizer.encode(text) == ids
        namespace = {}
        exec(text.removeprefix("```python\n").removesuffix("```"), namespace)
        assert isinstance(namespace["f"](5), int)
        assert len(prompt) <= load_recipe(RECIPE).data.prompt_tokens and len(response) < 16


def test_a_written_start_has_an_embedding_for_each_token(scripts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, start = scripts
    start.main(start.Options(str(tmp_path), role="student", steps=2, seed=3))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(tokenizer) == model.config.vocab_size == len(start.VOCABULARY)
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == len(start.VOCABULARY)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    assert len(tokenizer.encode("\n", add_special_tokens=False)) == 1, "verl's Qwen rules"


def test_the_recipe_plans_all_rows(tmp_path):
    plan = make_plan(load_recipe(RECIPE), run_dir=tmp_path, rows=["all"], seeds=[0, 1])
    assert len([node for node in plan.order if node.kind == "script"]) == 6, "nothing is shared between replications"
    assert json.dumps([node.settings for node in plan.order]).count("{seed}") == 0
