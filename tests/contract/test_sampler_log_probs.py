"""verl's V1 trainer with `algorithm.rollout_correction.bypass_mode` makes no pass for the old log-probabilities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict


class Queue:
    """A transfer queue of one batch, whose put replaces fields."""

    def __init__(self, **fields: torch.Tensor):
        self.fields = fields

    def kv_batch_get(self, *, keys, partition_id, select_fields):
        return TensorDict({name: self.fields[name] for name in select_fields}, batch_size=len(keys))

    def kv_batch_put(self, *, keys, partition_id, fields):
        self.fields |= dict(fields.items())


def test_the_samplers_log_probs_are_the_old_ones(monkeypatch):
    from verl.trainer.ppo.v1 import trainer_base

    sampled = torch.tensor([[-0.5, -1.5]])
    queue = Queue(rollout_log_probs=sampled)
    monkeypatch.setattr(trainer_base, "tq", queue)
    batch = SimpleNamespace(keys=["a"], partition_id="train")
    config = OmegaConf.create({"algorithm": {"rollout_correction": {"bypass_mode": True}}})
    # It has no workers: a pass would be an AttributeError.
    trainer = SimpleNamespace(config=config)
    (owner,) = [c for c in vars(trainer_base).values() if "_compute_old_log_prob" in getattr(c, "__dict__", ())]
    metrics: dict[str, float] = {}
    assert owner._compute_old_log_prob(trainer, batch, metrics) is batch
    assert torch.equal(queue.fields["old_log_probs"], sampled) and metrics == {}
    config.algorithm.rollout_correction.bypass_mode = False
    with pytest.raises((AttributeError, KeyError)):
        owner._compute_old_log_prob(trainer, batch, metrics)
