"""The quickstart's task, tokenizer, demonstrations and recipe."""

from __future__ import annotations

import importlib
import json
import random
from itertools import islice

import pytest

from tests.support.paths import ROOT
from verl_s2d.data.problems import check_disjoint, read_problems
from verl_s2d.data.unlabelled import read_pool
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.verifiers.registry import resolve

RECIPE = ROOT / "recipes/quickstart/quickstart.yaml"

pytest.importorskip("reasoning_gym")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    return importlib.import_module("tasks"), importlib.import_module("pretrain")


def score(problem, response: str) -> float:
    return resolve("reasoning_gym")(problem.data_source, response, problem.ground_truth, problem.extra_info)


def test_problems(scripts, tmp_path):
    tasks, _ = scripts
    tasks.main(tasks.Options(str(tmp_path / "a"), labelled=40, evaluation=20))
    tasks.main(tasks.Options(str(tmp_path / "b"), labelled=40, evaluation=20))
    train, evaluation = read_problems(tmp_path / "a/train.parquet"), read_problems(tmp_path / "a/eval.parquet")
    assert (len(train), len(evaluation)) == (40, 20)
    assert train == read_problems(tmp_path / "b/train.parquet")
    check_disjoint(train, {"eval": evaluation})
    assert not {p.id for p in train} & {p.id for p in evaluation}
    for problem in train:
        expression = problem.text.removesuffix(" =")
        assert tasks.part_of(expression) == "problems" and len(expression.split()) == 7
        assert score(problem, f"1 2 {eval(expression)}") == 1.0
        assert score(problem, f"{eval(expression)} 99") == 0.0


def test_the_pool_has_prompts_alone_and_none_of_the_problems(scripts, tmp_path):
    tasks, pool = scripts[0], importlib.import_module("pool")
    tasks.main(tasks.Options(str(tmp_path)))
    pool.main(pool.Options(str(tmp_path), prompts=200))
    prompts = read_pool(tmp_path / "prompts.parquet")
    assert len({problem.text for problem in prompts}) == 200
    check_disjoint(prompts, {name: read_problems(tmp_path / f"{name}.parquet") for name in ("train", "eval")})
    script = {"script": "pool.py", "args": {"seed": "{seed}"}, "uses": ["tasks.py"]}
    recipe = load_recipe(RECIPE, [f"data.prompts={json.dumps(script)}", "rows=[bridge-unlabelled]"])
    assert "opd-prompts" in [node.name for node in make_plan(recipe, run_dir=tmp_path / "run").order]


def test_seeds_give_other_problems(scripts):
    tasks, _ = scripts
    texts = [[p["prompt"][0]["content"] for p in islice(tasks.problems(seed), 30)] for seed in (0, 1)]
    assert len(set(texts[0]) & set(texts[1])) < 3


def test_pretraining_shares_no_problem(scripts):
    tasks, _ = scripts
    shown = {e["metadata"]["expression"] for e in islice(tasks.entries("pretraining", 0), 300)}
    assert all(tasks.part_of(e) == "pretraining" for e in shown)


@pytest.mark.parametrize(("styles", "expected"), [((1, 0, 0), "9 6 7"), ((0, 1, 0), "9 12 13"), ((0, 0, 1), "9 6")])
def test_demonstrations(scripts, monkeypatch, styles, expected):
    _, pretrain = scripts
    monkeypatch.setattr(pretrain, "SLIP", 0.0)
    assert pretrain.demonstration("2 + 7 - 3 + 1", styles, random.Random(0)) == expected.split()


def test_slips_happen_and_stay_in_the_vocabulary(scripts, monkeypatch):
    _, pretrain = scripts
    monkeypatch.setattr(pretrain, "SLIP", 1.0)
    rng = random.Random(0)
    written = {w for _ in range(300) for w in pretrain.demonstration("0 - 9 - 9 - 9", (1, 0, 0), rng)}
    assert "-27" in written and written <= {*pretrain.VOCABULARY} and len(written) > 10


def test_batches_learn_the_response_only(scripts):
    _, pretrain = scripts
    start, vocabulary = importlib.import_module("tiny_start"), pretrain.VOCABULARY
    ids, labels = next(start.batches(pretrain.demonstrations(pretrain.ROLES["teacher"].styles, 0), vocabulary))
    assert ids.shape == labels.shape == (64, 12)
    prompt = labels[:, :8]
    assert (prompt == -100).all() and (ids[:, 7] == vocabulary.index("=")).all()
    learned = labels != -100
    assert (labels[learned] == ids[learned]).all()
    assert ((labels == vocabulary.index("<|im_end|>")).sum(1) == 1).all()


def test_pretrained_directory(scripts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, pretrain = scripts
    pretrain.main(pretrain.Options(str(tmp_path), role="student", steps=2, seed=3))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0]
    assert model.config.num_hidden_layers == 2 and model.config.model_type == "qwen3"
    assert (
        model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    # verl's Qwen rules: a line break is one token.
    assert len(tokenizer.encode("\n", add_special_tokens=False)) == 1
    ids = tokenizer.encode("2 + 7 - 3 + 1 = 9 6 -7 <|im_end|>")
    assert len(ids) == 12 and tokenizer.decode(ids, skip_special_tokens=True) == "2 + 7 - 3 + 1 = 9 6 -7"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 7 ="}], add_generation_prompt=True, return_dict=False
    )
    assert rendered == tokenizer.encode("2 + 7 =")


def test_unknown_role(scripts, tmp_path):
    _, pretrain = scripts
    with pytest.raises(UserError, match="teacher, student"):
        pretrain.main(pretrain.Options(str(tmp_path), role="pupil"))


def test_recipe_plans_all_rows():
    recipe = load_recipe(RECIPE)
    plan = make_plan(recipe, rows=["all"], seeds=[0, 1])
    assert recipe.rows == ["cold-student", "direct-grpo", "bridge-only-1h", "half-split"]
    scripts = [n for n in plan.order if n.kind == "script"]
    # Data, teacher and student of each seed: nothing is shared between replications.
    assert len(scripts) == 6
    assert json.dumps([n.settings for n in plan.order]).count("{seed}") == 0
