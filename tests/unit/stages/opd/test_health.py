"""Health of stage 2b: settings, models asked for, and the parse rate on token ids."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config

from tests.support.tiny import WORDS, write_tokenizer
from tests.support.tiny_verl import composed
from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.opd.health import end_tokens, parse_rate
from verl_s2d.stages.planning import make_plan
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.verifiers.registry import VERIFIERS, can_extract, extractor_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def asked(*changes):
    config = composed("actor_rollout_ref.model.path=start/model", *changes)
    return read_opd_config(config).asked(config.actor_rollout_ref.model)


def test_travel_asks_the_student_at_the_stages_start_and_only_then():
    assert set(asked()) == {"teacher"}
    found = asked("+s2d.travel=true")
    assert list(found) == ["teacher", "start"] and found["start"] == FrozenModel(path="start/model")


def test_a_start_that_the_signal_asks_anyway_is_the_same_frozen_model():
    found = asked("+s2d.travel=true", "+s2d.signal.type=exopd", "+s2d.models.base.path=start/model")
    assert found["base"] == found["start"] and len(set(found.values())) == 2


def test_a_signals_own_role_of_that_name_is_refused_with_travel():
    signal = ("+s2d.signal.type=composed", "+s2d.signal.terms={teacher: 2, start: -1}", "+s2d.models.start.path=x")
    assert asked(*signal)["start"] == FrozenModel(path="x")
    with pytest.raises(UserError) as caught:
        asked("+s2d.travel=true", *signal)
    assert (caught.value.key, caught.value.value) == ("s2d.signal.type", "start")


@pytest.mark.parametrize(
    ("verifier", "key"),
    [
        ("verl", "s2d.parse_rate"),
        ("mathematics", "s2d.parse_rate"),
        ("{name: math, form: round}", "verifier.form"),
        ("{form: boxed}", "verifier.form"),
    ],
)
def test_a_verifier_that_cannot_extract_is_refused(verifier, key):
    with pytest.raises(UserError) as caught:
        asked(f"+s2d.parse_rate={verifier}")
    assert caught.value.key == key and caught.value.remedy


def test_the_list_of_verifiers_that_extract_is_complete():
    for name in VERIFIERS.keys() - {"reasoning_gym"}:  # may need a library that is not installed
        module = pytest.importorskip(VERIFIERS[name].partition(":")[0])
        assert can_extract(name) == hasattr(module, "extract"), name


def test_only_finished_responses_count(tokenizer):
    words, end = tokenizer.convert_tokens_to_ids, tokenizer.eos_token_id
    one, two = WORDS[-2:]
    responses = [
        torch.tensor([words(one), end]),
        torch.tensor([words(two), words(one), end]),
        torch.tensor([words(two), end]),
        torch.tensor([words(one), words(one)]),
        torch.tensor([], dtype=torch.int64),
    ]

    def extract(text):
        return text.split()[-1] if one in text.split() else None

    def measure(responses):
        return parse_rate(responses, {end}, tokenizer, [extract] * len(responses))

    assert measure(responses) == pytest.approx(2 / 3)
    assert measure(responses[3:]) is None
    boxed = extractor_of({"name": "math", "form": "boxed"})
    assert parse_rate(responses[:2], {end}, tokenizer, [boxed] * 2) == 0
    assert parse_rate(responses[:2], {end}, tokenizer, [boxed, extract]) == 1 / 2


def test_the_ends_are_those_of_the_tokenizer_and_of_the_models_files(tokenizer, tmp_path):
    end = tokenizer.eos_token_id
    Qwen3Config(eos_token_id=end).save_pretrained(tmp_path)
    assert end_tokens(str(tmp_path), tokenizer, trust_remote_code=False) == {end}
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(tmp_path)
    assert end_tokens(str(tmp_path), tokenizer, trust_remote_code=False) == {2, 3, end}


def opd_nodes(tmp_path, **changes):
    recipe = load_recipe(write_project(tmp_path, **changes))
    plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"])
    return [(node, node.stage.command(node, plan.context, 1).argv) for node in plan.order if node.stage.kind == "opd"]


def test_a_recipe_measures_the_parse_rate_where_its_verifier_extracts_and_travel_where_it_says_so(tmp_path):
    ((plain, command),) = opd_nodes(tmp_path, verifier={"name": "math", "form": "boxed"})
    (parsed,) = [argument for argument in command if "parse_rate" in argument]
    assert "name" in parsed and "math" in parsed and "form" in parsed and "boxed" in parsed
    assert not any("s2d.travel" in argument for argument in command) and "model" not in plain.stage.frozen_roles(plain)
    ((silent, command),) = opd_nodes(tmp_path)
    assert not any("parse_rate" in argument for argument in command), "a verifier of the recipe's own"
    ((chosen, command),) = opd_nodes(tmp_path, stages__opd__travel=True)
    assert "+s2d.travel=true" in [argument.lower() for argument in command]
    assert chosen.stage.frozen_roles(chosen) == ("teacher", "model")
    assert chosen.digest == silent.digest, "what is logged builds nothing"
