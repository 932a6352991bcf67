"""A stage that trained a LoRA adapter hands over a model: base weights and adapter merged, as peft would merge them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny import WORDS, write_model, write_tokenizer
from verl_s2d.errors import UserError
from verl_s2d.stages import stages
from verl_s2d.stages.merge.merge_adapter import merge
from verl_s2d.stages.shared.hand_off import hand_off
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.store import checkpoints

IDS = torch.randint(3, len(WORDS), (3, 9), generator=torch.Generator().manual_seed(0))


def checkpoint(directory: Path, *, tied: bool, file_size: str = "50GB", dtype=torch.float32) -> torch.Tensor:
    """Write what verl's FSDP engine does for a LoRA student; returns the merged model's logits by peft."""
    base = AutoModelForCausalLM.from_pretrained(write_model(directory / "base", tied=tied), dtype=dtype)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    export = directory / "huggingface"
    base.config.save_pretrained(export)
    write_tokenizer(export)
    state = {name: value.clone() for name, value in adapted.state_dict().items()}
    if tied:
        del state["base_model.model.lm_head.weight"]
    empty = AutoModelForCausalLM.from_config(base.config, dtype=torch.bfloat16)
    empty.save_pretrained(export, state_dict=state, max_shard_size=file_size)
    (directory / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}))
    with torch.no_grad():
        return adapted.merge_and_unload().float()(IDS).logits


@pytest.mark.parametrize(("tied", "file_size"), [(False, "50GB"), (True, "10KB")])
def test_the_merged_model_is_that_of_peft(tied, file_size, tmp_path):
    expected = checkpoint(tmp_path, tied=tied, file_size=file_size)
    assert (len(list((tmp_path / "huggingface").glob("*.safetensors"))) > 1) == (file_size == "10KB")
    assert merge(tmp_path, tmp_path / "merged") == 2 * 7
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(WORDS)
    assert not list((tmp_path / "merged").rglob("*lora*"))


def test_weights_keep_their_type(tmp_path):
    checkpoint(tmp_path, tied=False, dtype=torch.bfloat16)
    merge(tmp_path, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_what_is_no_lora_checkpoint_is_refused(tmp_path):
    checkpoint(tmp_path, tied=False)
    (tmp_path / "lora_train_meta.json").write_text(json.dumps({"r": 8, "lora_alpha": 6}))
    with pytest.raises(UserError, match="another rank, 4"):
        merge(tmp_path, tmp_path / "merged")
    (tmp_path / "lora_train_meta.json").unlink()
    with pytest.raises(UserError, match="rank and alpha"):
        merge(tmp_path, tmp_path / "merged")
    plain = write_model(tmp_path / "plain" / "huggingface").parent
    with pytest.raises(UserError, match="no weights with an adapter"):
        merge(plain, tmp_path / "merged")


@pytest.fixture
def stage(tmp_path) -> tuple[Node, Path]:
    """A stage that reached its last step, 3, and the directory of that step."""
    step = tmp_path / "checkpoints" / "global_step_3" / "actor"
    step.mkdir(parents=True)
    (tmp_path / "checkpoints" / checkpoints.TRACKER).write_text("3")
    return Node(stages()["opd"], "opd-all", {}), step


def test_a_stage_hands_over_the_merged_model_also_after_a_kill_in_between(stage, tmp_path):
    node, step = stage
    expected = checkpoint(step, tied=True)
    (tmp_path / "model.merged").mkdir()
    (tmp_path / "model.merged" / "model.safetensors").write_bytes(b"half")
    hand_off(node, tmp_path, 3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    before = os.stat(tmp_path / "model" / "model.safetensors")
    hand_off(node, tmp_path, 3)
    assert os.stat(tmp_path / "model" / "model.safetensors") == before


def test_a_stage_whose_adapter_cannot_be_merged_says_why(stage, tmp_path):
    node, step = stage
    checkpoint(step, tied=False)
    (step / "lora_train_meta.json").unlink()
    with pytest.raises(StageFailed, match=r"adapter cannot be merged[\s\S]*rank and alpha"):
        hand_off(node, tmp_path, 3)
    assert not (tmp_path / "model").exists()
