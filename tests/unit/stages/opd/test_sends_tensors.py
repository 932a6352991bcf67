"""Engines' passes read the tensors of a text batch and nothing else, and the batch is whole again after each."""

from __future__ import annotations

import pytest
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import get_tensordict

from verl_s2d.stages.shared.sends_tensors import SendsTensors

PASSES = ("_compute_old_log_prob", "_compute_ref_log_prob", "_update_actor")
ROW = get_tensordict(
    {
        "input_ids": torch.nested.as_nested_tensor([torch.arange(5)], layout=torch.jagged),
        "s2d_teacher": torch.tensor([1]),
        "raw_prompt": [[{"role": "user", "content": "1 + 2 ="}]],
        "extra_info": [{"index": "sum-1"}],
        "multi_modal_inputs": [{}],
    },
    {"global_steps": 3},
)


class Trainer:
    """Records the fields that a pass of verl's would fetch."""

    processor = None

    def __init__(self):
        self.seen, self.fails = [], False

    def _pass(self, batch, metrics):
        self.seen.append(batch.fields)
        if self.fails:
            raise RuntimeError("out of memory")
        return batch

    _compute_old_log_prob = _compute_ref_log_prob = _update_actor = _pass


class Sends(SendsTensors, Trainer):
    """The mixin before it."""


@pytest.fixture
def batch(monkeypatch):
    monkeypatch.setattr(tq, "kv_batch_get", lambda keys, partition_id: ROW if keys == ["a_0_0"] else None)
    return KVBatchMeta(keys=["a_0_0", "a_1_0"], tags=[{}, {}], partition_id="train")


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_reads_tensors(batch, name, fails):
    trainer = Sends()
    trainer.fails = fails
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            getattr(trainer, name)(batch, {})
    else:
        assert getattr(trainer, name)(batch, {}) is batch
    assert [sorted(fields) for fields in trainer.seen] == [["input_ids", "s2d_teacher"]]
    assert batch.fields is None


def test_a_model_that_sees_images_gets_all(batch):
    trainer = Sends()
    trainer.processor = object()
    trainer._update_actor(batch, {})
    assert trainer.seen == [None]
