"""Check the hand-off of a Megatron stage to the next stage, and its own resume.

Two tensor-parallel ranks write a checkpoint as verl does (tests/support/ranks/megatron_checkpoint.py).
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.support.ranks.group import problems, run
from tests.support.ranks.megatron_checkpoint import IDS, STEP, STEPS_TRAINED
from tests.support.tiny import WORDS, write_tokenizer
from verl_s2d.platforms.environment import cpu_environment
from verl_s2d.stages import stages
from verl_s2d.stages.shared.hand_off import hand_off
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.store import checkpoints


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits[0]


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
def stage(request, tmp_path_factory):
    """A stage's directory with verl's checkpoint of its last step."""
    directory = tmp_path_factory.mktemp("stage")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=26,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=request.param,
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    source = Qwen3ForCausalLM(config).float()
    source.save_pretrained(directory / "source")
    write_tokenizer(directory / "source", WORDS)
    torch.save(logits_of(source), directory / "logits.pt")
    ended = run("tests.support.ranks.megatron_checkpoint", 2, directory, cpu_environment())
    (directory / "checkpoints").mkdir(exist_ok=True)
    (directory / "checkpoints" / checkpoints.TRACKER).write_text(str(STEPS_TRAINED))
    return directory, ended


@pytest.mark.parametrize("case", ["save", "resume"])
def test_verl_writes_the_trained_model_and_goes_on_from_it(case, stage):
    assert not (found := problems(stage[1], case)), found


def test_the_next_stage_is_given_the_trained_model(stage):
    directory, ended = stage
    assert not problems(ended, "save")
    actor = directory / "checkpoints" / STEP / "actor"
    layout = {p.relative_to(actor).as_posix() for p in actor.glob("*/*") if any(p.iterdir())}
    assert layout == {"model/huggingface", "optimizer/dist_ckpt", "extra/dist_ckpt"}
    node = Node(stages()["grpo"], "teacher-rl-all", {"steps": STEPS_TRAINED})
    hand_off(node, directory, STEPS_TRAINED)
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
    assert torch.allclose(logits_of(model), torch.load(directory / "trained.pt"), atol=1e-5)
