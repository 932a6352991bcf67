"""A cache with the teacher's likely tokens: aligned with the responses, cut to the k that is asked for, or refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from verl_s2d.errors import UserError
from verl_s2d.sampling import likely_tokens
from verl_s2d.sampling.likely_tokens import LikelyTokens
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.warmup.config_checks import read_warmup_settings
from verl_s2d.stages.warmup.stored_top_k import RolloutsWithLikelyTokens, TeacherCollator

RESPONSES = [[7, 8], [], [9], [5, 6, 1]]


@pytest.fixture
def cache(tmp_path):
    """Rollouts with three likely tokens at each response token: ids 10 p, 10 p + 1, 10 p + 2 at position p of all."""
    positions = iter(np.split(np.arange(6, dtype=np.int32), np.cumsum([len(r) for r in RESPONSES])[:-1]))
    likely = []
    for place in positions:
        ids = 10 * place[:, None] + np.arange(3, dtype=np.int32)
        likely.append(LikelyTokens(ids, -ids.astype(np.float32)))
    columns = {"prompt_ids": [[3, 4]] * 4, "response_ids": RESPONSES} | likely_tokens.columns(likely)
    schema = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("response_ids", pa.list_(pa.int32()))])
    schema = pa.schema([*schema, *(pa.field(*column) for column in likely_tokens.fields(3))])
    pq.write_table(pa.Table.from_pydict(columns, schema), tmp_path / "rollouts.parquet")
    return str(tmp_path / "rollouts.parquet")


@pytest.mark.parametrize("k", [1, 3])
def test_row_t_is_about_token_t_plus_1_of_each_response(cache, k):
    rollouts = RolloutsWithLikelyTokens(cache, k)
    assert len(rollouts) == 3, "a rollout without a response is left out"
    position = 0
    for row, response in zip((rollouts[i] for i in range(3)), filter(None, RESPONSES), strict=True):
        ids, log_probs = row["teacher_ids"], row["teacher_logprobs"]
        assert ids.shape == log_probs.shape == (2 + len(response), k)
        predicts = torch.roll(row["loss_mask"], -1).bool()
        expected = 10 * torch.arange(position, position + len(response))[:, None] + torch.arange(k)
        assert torch.equal(ids[predicts], expected.int()) and torch.equal(log_probs[predicts], -expected.float())
        assert not ids[~predicts].any()
        position += len(response)
    batch = TeacherCollator("no_padding")([rollouts[i] for i in range(3)])
    assert batch["teacher_ids"].values().shape == (len(batch["input_ids"].values()), k)
    assert torch.equal(batch["teacher_logprobs"].offsets(), batch["input_ids"].offsets())


def test_the_caches_of_several_teachers_are_one(cache):
    one, both = RolloutsWithLikelyTokens(cache, 2), RolloutsWithLikelyTokens([cache, cache], 2)
    assert len(both) == 2 * len(one)
    for place in range(len(both)):
        for name, values in both[place].items():
            assert torch.equal(values, one[place % len(one)][name])


def test_a_cache_that_stores_too_little_is_refused(cache, tmp_path):
    with pytest.raises(UserError, match="stores the 3 most likely") as caught:
        RolloutsWithLikelyTokens(cache, 4)
    assert (caught.value.key, caught.value.value) == ("s2d.signal.k", 4) and "log_probs=4" in caught.value.remedy
    plain = pq.read_table(cache).drop_columns(["top_ids"])
    pq.write_table(plain, tmp_path / "plain.parquet")
    with pytest.raises(UserError, match="stores no likely tokens") as caught:
        RolloutsWithLikelyTokens(str(tmp_path / "plain.parquet"), 3)
    assert caught.value.key == "s2d.signal.k"


def test_likely_tokens_of_other_responses_are_refused(cache, tmp_path):
    table = pq.read_table(cache)
    mixed = table.set_column(1, "response_ids", table["response_ids"].take(pa.array([3, 1, 2, 0])))
    pq.write_table(mixed, tmp_path / "mixed.parquet")
    with pytest.raises(UserError, match="not those of its responses"):
        RolloutsWithLikelyTokens(str(tmp_path / "mixed.parquet"), 2)


def test_the_warmup_asks_no_model_for_them():
    settings = read_warmup_settings({"signal": {"type": "top_k", "k": 8}, "teacher": {"path": None}})
    assert settings.signal == TopK(k=8) and settings.models == {} and settings.is_loss and not settings.exact
    assert read_warmup_settings(settings.written()) == settings
    for key, section in {
        "s2d.teacher": {"signal": {"type": "top_k"}, "teacher": {"path": "t"}},
        "s2d.signal.k": {"signal": {"type": "top_k", "k": 0}},
        "s2d.signal.keep_tokens": {"signal": {"type": "top_k", "keep_tokens": 0.5}},
        "s2d.health_top_k": {"signal": {"type": "top_k"}, "health_top_k": 4},
    }.items():
        with pytest.raises(UserError) as caught:
            read_warmup_settings(section)
        assert caught.value.key == key and caught.value.remedy
