"""Parameters counted from shapes are those of published checkpoints and of transformers' own models."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.sizing.shapes import PUBLISHED, ModelShape, ShapeUnknown, shape_of
from verl_s2d.stages.planning import make_plan

TOTALS = {
    # Elements of the published safetensors; of the 1.7B without the second copy of its tied embedding.
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
}


def test_published_totals():
    assert {name: shape.parameters for name, shape in PUBLISHED.items()} == TOTALS


def config_of(shape: ModelShape, family: str) -> dict:
    return {
        "model_type": family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_counts_are_those_of_transformers_models(family, tied):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = config_of(ModelShape(96, 160, 3, 6, 2, 16, 77, tied), family)
    shape = shape_of(given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.block_parameters == sum(p.numel() for p in model.model.layers[0].parameters())


@pytest.mark.parametrize("name", ["Qwen/Qwen3-1.7B", "meta-llama/Llama-3.3-70B-Instruct"])
def test_counts_at_full_size_without_weights(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = config_of(PUBLISHED[name], "qwen3" if name.startswith("Qwen") else "llama")
    assert shape_of(given) == PUBLISHED[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given))
    assert PUBLISHED[name].parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model_type": "mamba"}, "not for model_type 'mamba'"), ({"hidden_size": "x"}, "hidden_size")],
)
def test_what_cannot_be_counted_says_why(change, words):
    with pytest.raises(ShapeUnknown, match=words):
        shape_of(config_of(PUBLISHED["Qwen/Qwen3-8B"], "qwen3") | change)


def models_of(tmp_path, **changes):
    plan = make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=["half-split"])
    return Models(plan), {node.name: node for node in plan.order}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No hub, and nothing of it kept here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_stage_has_the_shape_of_the_model_its_training_began_with(tmp_path, offline):
    models, nodes = models_of(tmp_path, student="Qwen/Qwen3-1.7B", teacher="Qwen/Qwen3-8B")
    assert models.shape(nodes["student-rl-2h"]) == PUBLISHED["Qwen/Qwen3-1.7B"]
    assert models.shape(nodes["evaluate-half-split"]) == PUBLISHED["Qwen/Qwen3-1.7B"]
    assert models.largest_frozen(nodes["opd-1h"]) == models.shape(nodes["rollouts-1h"]) == PUBLISHED["Qwen/Qwen3-8B"]
    assert models.largest_frozen(nodes["student-rl-2h"]) is None and models.unknown == []


def test_a_model_nobody_knows_offline_is_named_once_with_what_to_do(tmp_path, offline):
    models, nodes = models_of(tmp_path, teacher="some/model")
    assert models.shape(nodes["rollouts-1h"]) is None and models.largest_frozen(nodes["opd-1h"]) is None
    (line,) = models.unknown
    assert line.startswith("teacher: some/model") and "name that under teacher.config" in line


def test_its_config_json_can_be_given(tmp_path, offline):
    (tmp_path / "shape.json").write_text(json.dumps(config_of(PUBLISHED["Qwen/Qwen3-14B"], "qwen3")))
    models, nodes = models_of(tmp_path, teacher={"model": "some/model", "config": "shape.json"})
    assert models.largest_frozen(nodes["opd-1h"]) == PUBLISHED["Qwen/Qwen3-14B"]
    models, nodes = models_of(tmp_path, teacher={"model": "some/model", "config": "missing.json"})
    with pytest.raises(UserError, match=r"(?s)teacher\.config.*missing.json.*remedy"):
        models.largest_frozen(nodes["opd-1h"])


def test_a_model_in_the_hubs_cache_is_read_there(tmp_path, offline):
    snapshot = tmp_path / "cache" / "models--some--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config_of(PUBLISHED["Qwen/Qwen3-14B"], "qwen3")))
    refs = tmp_path / "cache" / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    models, nodes = models_of(tmp_path, teacher="some/model")
    assert models.shape(nodes["rollouts-1h"]) == PUBLISHED["Qwen/Qwen3-14B"]
