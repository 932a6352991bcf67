"""Stage 2b's trainer gives each problem its weight as it is read, and refuses problems that have none."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from tests.support.tiny_verl import composed
from verl_s2d.errors import UserError
from verl_s2d.objectives.token_weights import expand_to_tokens
from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT, token_factors
from verl_s2d.stages.opd.config import read_opd_config, read_opd_settings
from verl_s2d.stages.opd.weighted_problems import WeighsProblems


class Trainer(WeighsProblems, PPOTrainerSync):
    """The mixin on verl's trainer without workers."""

    def __init__(self, config, problems):
        self.s2d = read_opd_config(config)
        self.train_dataset = type("Data", (), {"dataframe": Dataset.from_list(problems)})


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(PPOTrainerSync, "_init_dataloader", lambda self: None)
    batch = TensorDict({"index": NonTensorStack("a", "c", "b")}, batch_size=[3])
    monkeypatch.setattr(PPOTrainerSync, "_next_train_batch", lambda self, num_prompts=None: batch.clone())

    def make(rates, *problems, key="+s2d.problem_weights.path"):
        (tmp_path / "rates.json").write_text(json.dumps(rates))
        data = [{"extra_info": {"index": problem}} for problem in problems]
        return Trainer(composed(*([f"{key}={tmp_path}/rates.json"] if rates else [])), data)

    return make


def test_a_batch_gets_the_weights_of_its_problems(trainer):
    made = trainer({"a": 0.5, "b": 0.25, "c": 1.0, "elsewhere": 0.5}, "a", "b", "c")
    made._init_dataloader()
    found = made._next_train_batch()[PROBLEM_WEIGHT]
    mean = (0.25 + 0.1875 + 0 + 0.25) / 4
    torch.testing.assert_close(found, torch.tensor([[0.25], [0.0], [0.1875]]) / mean)


def test_without_weights_a_batch_is_verls(trainer):
    made = trainer({}, "a", "b", "c")
    made._init_dataloader()
    assert set(made._next_train_batch().keys()) == {"index"}


def test_a_problem_without_a_rate_is_refused_before_any_worker(trainer):
    with pytest.raises(UserError, match=r"1 problems of data\.train_files have no pass rate, for example c") as refused:
        trainer({"a": 0.5, "b": 0.25}, "a", "b", "c")._init_dataloader()
    assert refused.value.key == "s2d.problem_weights.path"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["+s2d.problem_weights.a=1"], "s2d.problem_weights.path"),
        (
            ["+s2d.problem_weights.path=x", "+s2d.problem_weights.a=0", "+s2d.problem_weights.b=0"],
            "s2d.problem_weights.a",
        ),
        (["+s2d.problem_weights.path=x", "+s2d.problem_weights.a=-1"], "s2d.problem_weights.a"),
        (["+s2d.problem_weights.path=x", "+s2d.problem_weights.samples=8"], "s2d.problem_weights.samples"),
    ],
)
def test_a_key_that_makes_no_weights_is_refused(changes, key):
    with pytest.raises(UserError) as refused:
        read_opd_config(composed(*changes))
    assert refused.value.key == key


def test_the_section_reaches_the_workers_as_it_was_read():
    config = read_opd_config(composed("+s2d.problem_weights.path=x", "+s2d.problem_weights.b=2.5"))
    assert read_opd_settings(config.written()) == config and config.problem_weights.b == 2.5


@pytest.mark.parametrize("nested", [True, False])
def test_a_rollouts_tokens_have_its_problems_weight(nested):
    lengths, weights = [3, 1, 4], torch.tensor([[2.0], [0.0], [0.5]])
    ids = torch.nested.as_nested_tensor([torch.arange(n) for n in lengths], layout=torch.jagged)
    field = torch.nested.as_nested_tensor(list(weights), layout=torch.jagged) if nested else weights
    found = token_factors(tu.get_tensordict({"input_ids": ids, PROBLEM_WEIGHT: field}))
    assert found.tolist() == [2, 2, 2, 0, 0.5, 0.5, 0.5, 0.5]
    torch.testing.assert_close(found, expand_to_tokens(weights[:, 0], torch.tensor([0, 3, 4, 8]), 8))
    assert token_factors(tu.get_tensordict({"input_ids": ids})) is None
