"""Answers of servers in verl's batches: aligned with the tokens, and none for the rows that verl adds to a batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq

from tests.support.tiny_verl import composed
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.opd.served_models import ServedModels
from verl_s2d.teachers.teacher_servers import ServerAnswer

# Prompt, response, response mask; the last row is verl's padding.
ROWS = [([3, 4], [5, 6, 1], [1, 1, 1]), ([7], [8, 9], [1, 0]), ([0, 0], [0], [0])]
BATCH = SimpleNamespace(keys=["a", "b", "c"], partition_id="train")


class Servers:
    """A teacher to whom token t + 1 has log-prob -(t + 1) after its sequence's first token, and the likely ids 2, 3."""

    def log_probs(self, sequences):
        return [-torch.arange(1, len(s) + 1).float() - s[0] for s in sequences]

    def top_k(self, sequences):
        return [ServerAnswer(torch.tensor([[2, 3]] * len(s)).int(), torch.full((len(s), 2), -0.5)) for s in sequences]


@pytest.fixture
def store(monkeypatch):
    """Stands in for TransferQueue: fields by name."""
    columns = [[torch.tensor(row[i]) for row in ROWS] for i in range(3)]
    names = ("prompts", "responses", "response_mask")
    fields = {
        name: torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        for name, rows in zip(names, columns, strict=True)
    }

    def put(keys, partition_id, fields: dict):
        assert (keys, partition_id, len(fields)) == (BATCH.keys, "train", 3)
        found.update(fields.items())

    found = dict(fields)
    monkeypatch.setattr(tq, "kv_batch_get", lambda keys, partition_id, select_fields: {n: found[n] for n in fields})
    monkeypatch.setattr(tq, "kv_batch_put", put)
    return found


def served(*changes: str) -> ServedModels:
    config = composed("+s2d.teacher.placement=server", *changes)
    models = ServedModels(read_opd_config(config), config)
    [model] = models._role_of
    models._servers = {model: Servers()}
    return models


def test_log_probs_are_those_of_the_response_tokens(store):
    served().write_log_probs(BATCH, "teacher", "ref_log_prob")
    rows = [row.tolist() for row in store["ref_log_prob"].unbind()]
    # The first response token of the first row is token 2, about which entry 1 is.
    assert rows == [[-5.0, -6.0, -7.0], [-8.0, -9.0], [0.0]]


def test_likely_tokens_cover_prompt_and_response(store):
    served("+s2d.signal.type=top_k", "+s2d.signal.k=2").write_top_k(BATCH, "teacher")
    ids, log_probs = store["teacher_ids"], store["teacher_logprobs"]
    assert ids.dtype == torch.int32 and log_probs.dtype == torch.float32
    assert [tuple(row.shape) for row in ids.unbind()] == [(5, 2), (3, 2), (3, 2)]
    assert torch.equal(ids.offsets(), log_probs.offsets())
    for row, known in zip(ids.unbind(), (True, True, False), strict=True):
        assert row.tolist() == ([[2, 3]] * len(row) if known else [[0, 0]] * len(row))
