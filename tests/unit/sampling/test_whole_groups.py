"""Groups that lack a rollout: dropped, counted, sampled again up to a bound, and left out of a validation's mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_s2d.errors import UserError
from verl_s2d.sampling.in_verl.refills_groups import RefillsGroups
from verl_s2d.sampling.in_verl.whole_groups import FAILED, MOST_BATCHES, UNSCORED, WholeGroups

BATCH, ROLLOUTS = 4, 2
DOWN = "the judge is down"


class Store:
    """Stands in for TransferQueue's tags."""

    def __init__(self, monkeypatch):
        self.tags = {}
        monkeypatch.setattr(tq, "kv_list", lambda partition_id=None: {key: dict(v) for key, v in self.tags.items()})
        monkeypatch.setattr(tq, "kv_clear", self.clear)

    def clear(self, keys, partition_id):
        for key in keys:
            self.tags[partition_id].pop(key, None)

    def end(self, uid, partition="train", rollouts=ROLLOUTS, **tag):
        """Record a prompt whose rollouts have ended, `rollouts` of them written."""
        found = self.tags.setdefault(partition, {})
        status = "finished" if not tag else "failure"
        found[uid] = {"is_prompt": True, "status": status, "global_steps": 1, **tag}
        found |= {f"{uid}_{number}_0": {"status": "success"} for number in range(rollouts)}


def buffer(refill=None, **settings):
    made = ReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        refill_fn=refill,
        train_batch_size=BATCH,
        gen_batch_size=BATCH,
        **settings,
    )
    return WholeGroups.of(made)


def test_the_settings_are_those_of_verls_buffer():
    made = buffer(len, poll_interval=0.5, filter_groups_metric="reward")
    assert made.refill_fn is len and (made.poll_interval, made.filter_groups_metric) == (0.5, "reward")
    assert made.sync_refill_failed_groups and made.max_off_policy_threshold == 8


@pytest.mark.parametrize("written", [0, 1])
def test_a_failed_group_is_replaced_also_where_some_of_its_rollouts_are_there(monkeypatch, written):
    store, asked = Store(monkeypatch), []

    def refill(count):
        asked.append(count)
        for number in range(count):
            store.end(f"new{len(asked)}{number}")

    for number in range(BATCH - 2):
        store.end(f"good{number}")
    store.end("bad0", rollouts=written, **{UNSCORED: DOWN})
    store.end("bad1", rollouts=written, **{FAILED: "RuntimeError: no server"})
    batch, metrics = buffer(refill).sample(global_steps=1, partition_id="train", batch_size=BATCH)
    assert asked == [2] and len(batch.keys) == BATCH * ROLLOUTS and not any("bad" in key for key in batch.keys)
    assert (metrics["s2d/unscored_groups"], metrics["s2d/unscored_share"]) == (1, 1 / BATCH)
    assert metrics["training/rollout_failure/evicted_samples"] == 2


def test_a_step_without_failures_counts_none(monkeypatch):
    store, made = Store(monkeypatch), buffer(len)
    for number in range(BATCH):
        store.end(f"good{number}")
    _, metrics = made.sample(global_steps=1, partition_id="train", batch_size=BATCH)
    assert metrics == {"s2d/unscored_groups": 0, "s2d/unscored_share": 0}


def test_a_verifier_that_is_down_for_good_ends_the_stage_with_its_reason(monkeypatch):
    store, asked = Store(monkeypatch), []

    def refill(count):
        asked.append(count)
        for number in range(count):
            store.end(f"new{len(asked)}{number}", rollouts=0, **{UNSCORED: DOWN})

    refill(BATCH)
    with pytest.raises(UserError, match=DOWN) as raised:
        buffer(refill).sample(global_steps=7, partition_id="train", batch_size=BATCH)
    assert sum(asked) == (MOST_BATCHES + 1) * BATCH and "step 7" in str(raised.value)
    assert raised.value.key == "verifier" and "resumes" in str(raised.value)


def test_the_count_begins_anew_with_every_step(monkeypatch):
    store, made = Store(monkeypatch), buffer(lambda count: [store.end(f"{number}") for number in range(count)])
    for step in range(1, 3 * MOST_BATCHES):
        for number in range(BATCH):
            store.end(f"bad{step}{number}", rollouts=0, **{UNSCORED: DOWN})
        _, metrics = made.sample(global_steps=step, partition_id="train", batch_size=BATCH)
        assert metrics["s2d/unscored_groups"] == BATCH


class Dataset(list):
    """Problems as verl's dataset yields them."""


class Plain(PPOTrainer):
    """verl's trainer without engines."""

    def on_step_end(self):
        raise NotImplementedError

    on_sample_end = on_step_end


class Trainer(RefillsGroups, Plain):
    """The same with the mixin."""

    def __init__(self, **data):
        self.trainer_mode, self.global_steps = "sync", 3
        sampler = {"max_off_policy_threshold": 8, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
        self.config = OmegaConf.create(
            {
                "data": {"train_batch_size": BATCH, "seed": 1, **data},
                "trainer": {"v1": {"sync": {}, "sampler": sampler}},
                "algorithm": {},
            }
        )
        self.train_dataset = Dataset(
            {"raw_prompt": [{"content": str(n)}], "index": n, "input": torch.tensor([n])} for n in range(50)
        )
        self.replay_buffer = self._build_replay_buffer()


def test_prompts_in_the_place_of_failed_ones_are_drawn_from_all_problems():
    trainer = Trainer()
    first, second = trainer._next_train_batch(20), trainer._next_train_batch(20)
    assert first["input"].shape == (20, 1) and first["index"] == first["input"][:, 0].tolist()
    assert first["input"].tolist() != second["input"].tolist() and len(set(first["uid"]) | set(second["uid"])) == 40
    assert first["global_steps"] == 3 and Trainer()._next_train_batch(20)["input"].tolist() == first["input"].tolist()


@pytest.mark.parametrize("count", [None, 1])
def test_verl_reads_its_own_batches(monkeypatch, count):
    monkeypatch.setattr(PPOTrainer, "_next_train_batch", lambda self, number=None: number)
    assert Trainer(gen_batch_size=1)._next_train_batch(count) is count and Trainer()._next_train_batch() is None


def validated(trainer, scores: dict[str, list[float]], expected: dict[str, int]):
    uids = [uid for uid, found in scores.items() for _ in found]
    values = [value for found in scores.values() for value in found]
    infos = {"reward": values, "acc": values}
    counts = {("sums", uid): number for uid, number in expected.items()}
    return trainer._val_metrics_update(["sums"] * len(uids), uids, infos, [2] * len(uids), expected_acc_counts=counts)


def test_unscored_responses_are_left_out_of_the_validations_mean_and_counted(monkeypatch):
    store, trainer = Store(monkeypatch), Trainer()
    for uid in ("right", "wrong"):
        store.end(uid, "val")
    store.end("unjudged", "val", rollouts=0, **{UNSCORED: DOWN})
    store.end("lost", "val", rollouts=0, **{FAILED: "no server"})
    batch, metrics = trainer.replay_buffer.sample(global_steps=1, partition_id="val", batch_size=4)
    assert len(batch.keys) == 4 and "s2d/unscored_groups" not in metrics
    scores, expected = {"right": [1.0, 1.0], "wrong": [0.0, 0.0]}, ["right", "wrong", "unjudged", "lost"]
    found = validated(trainer, scores, dict.fromkeys(expected, 2))
    # verl counts what was lost otherwise as wrong: (2 + 0 + 0) of 6.
    assert found["val-core/sums/acc/mean@2"] == pytest.approx(1 / 3)
    assert (found["s2d/validation_unscored"], found["s2d/validation_unscored_share"]) == (2, 2 / 8)
    again = validated(trainer, scores, {"right": 2, "wrong": 2})
    assert again["s2d/validation_unscored"] == 0 and again["val-core/sums/acc/mean@2"] == 0.5
    assert np.isfinite(list(found.values())).all()


def test_a_validation_without_any_judged_response_ends_the_stage(monkeypatch):
    store = Store(monkeypatch)
    store.end("unjudged", "val", rollouts=0, **{UNSCORED: DOWN})
    with pytest.raises(UserError, match=DOWN):
        Trainer().replay_buffer.sample(global_steps=2, partition_id="val", batch_size=1)
