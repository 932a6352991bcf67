"""The mean of models' weights, on files as transformers writes them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from verl_s2d.errors import UserError
from verl_s2d.stages.average.average_weights import average
from verl_s2d.workflow.store.saved_weights import export_problem

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


@pytest.fixture
def saved(tmp_path):
    """Write a model of a seed, in files of at most `shard` bytes."""

    def write(seed: int, *, layers: int = 2, dtype=torch.float32, shard: str = "5GB"):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, num_hidden_layers=layers)).to(dtype)
        directory = tmp_path / f"model-{seed}-{layers}-{shard}"
        model.save_pretrained(directory, max_shard_size=shard)
        (directory / "tokenizer.json").write_text("{}")
        return directory

    return write


def weights(directory) -> dict[str, torch.Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_is_the_mean_whatever_the_division_into_files(saved, tmp_path, dtype):
    models = [saved(0, dtype=dtype, shard="20KB"), saved(1, dtype=dtype), saved(2, dtype=dtype, shard="30KB")]
    out = tmp_path / "mean"
    parts = [weights(model) for model in models]
    assert average(models, out) == len(parts[0]) > 10
    found = weights(out)
    assert found.keys() == parts[0].keys()
    for name, value in found.items():
        expected = sum(part[name].double() for part in parts) / 3
        assert value.dtype == dtype and torch.equal(value, expected.to(dtype)), name
    assert export_problem(out) is None
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(loaded.model.norm.weight, found["model.norm.weight"].to(loaded.dtype))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_mean_of_equal_models_is_that_model(saved, tmp_path, count):
    model = saved(3)
    average([model] * count, tmp_path / "mean")
    found, expected = weights(tmp_path / "mean"), weights(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_models_of_different_shapes_or_fewer_than_two_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="only one has"):
        average([saved(0), saved(0, layers=3)], tmp_path / "mean")
    torch.manual_seed(0)
    wider = Qwen3ForCausalLM(Qwen3Config(**SIZES | {"intermediate_size": 64}, num_hidden_layers=2))
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(UserError, match="mlp"):
        average([saved(0), tmp_path / "wider"], tmp_path / "mean")
    with pytest.raises(UserError, match="two models"):
        average([saved(0)], tmp_path / "mean")
    with pytest.raises(UserError, match="no weights"):
        average([saved(0), tmp_path], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
