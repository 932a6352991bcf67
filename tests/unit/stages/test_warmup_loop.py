"""verl's SFT loop as the warmup's driver runs it, with workers played: which device it touches, and when it saves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils import tensordict_utils as tu

from tests.support.warmup_configuration import configuration
from verl_s2d.stages.ending.end_file import ended
from verl_s2d.stages.shared.save_on_request import SaveClock
from verl_s2d.stages.warmup.config_checks import read_warmup_settings
from verl_s2d.stages.warmup.trainer import WarmupTrainer
from verl_s2d.workflow import save_request


def rows(batch: list[list[int]]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.nested.nested_tensor([torch.tensor(row) for row in batch], layout=torch.jagged)}


class Workers:
    """The group of workers: answers a step with metrics, and is told of checkpoints."""

    def __init__(self, at_step):
        self.saved, self.steps, self._at_step = [], 0, at_step

    def train_batch(self, data):
        self.steps += 1
        self._at_step(self.steps)
        metrics = {"loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "mfu": 0.0}
        metrics["train/forward_kl"] = max(1.0 - 0.2 * self.steps, 0.2)
        return SimpleNamespace(get=lambda: tu.get_tensordict({}, non_tensor_dict={"metrics": metrics}))

    def save_checkpoint(self, local_path, global_step, max_ckpt_to_keep):
        self.saved.append(global_step)


class Trainer(WarmupTrainer):
    """The warmup's trainer without models, cache and Ray."""

    at_step = staticmethod(lambda step: None)

    def _build_config(self):
        self.s2d = read_warmup_settings(self.config.s2d)
        self.model_config = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
        self.start_profile_step = self.end_profile_step = -1

    def _build_dataset(self):
        pass

    def _build_dataloader(self):
        self._wanted_steps = self.steps_per_epoch = 10
        self.global_batch_size, self._save_every, self.test_freq = 2, self.config.trainer.save_freq, -1
        self.train_sampler = SimpleNamespace(set_epoch=lambda epoch: None)
        self.train_dataloader = StatefulDataLoader([[1, 2], [3]] * 10, batch_size=2, collate_fn=rows)
        self.val_dataloader = None

    def _build_engine(self):
        self.training_client = Workers(self.at_step)


@pytest.fixture
def trained(warmup_models, tmp_path):
    """Train ten steps; the played workers."""

    def train(*overrides, at_step=lambda step: None):
        base = ("trainer.device=cuda", "trainer.total_epochs=1", "trainer.balance_batch=false", "trainer.save_freq=4")
        config = configuration(warmup_models, *base, f"trainer.default_local_dir={tmp_path}", *overrides)
        trainer = type("T", (Trainer,), {"at_step": staticmethod(at_step)})(config)
        trainer.fit()
        return trainer.training_client

    return train


def test_the_driver_makes_no_tensor_on_a_device(trained, monkeypatch):
    """Its node may be a Ray head without one; where there is one, a context of it would cost memory."""
    devices, tensor = [], torch.tensor

    def noted(*arguments, device=None, **more):
        devices.append(device)
        return tensor(*arguments, device=device, **more)

    monkeypatch.setattr("verl.trainer.sft_trainer_ray.torch.tensor", noted)
    assert trained().steps == 10
    assert {str(device) for device in devices} <= {"cpu", "None"} and devices


def test_it_saves_when_minutes_have_passed_since_the_last_checkpoint(trained, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("verl_s2d.stages.shared.save_on_request.time.monotonic", lambda: now[0])

    def ten_minutes(step):
        now[0] += 600

    assert trained("s2d.save_minutes=25", at_step=ten_minutes).saved == [3, 4, 7, 8, 10]
    assert trained("trainer.resume_mode=disable", at_step=ten_minutes).saved == [4, 8, 10]
    assert trained(
        "trainer.resume_mode=disable", "trainer.save_freq=-1", "s2d.save_minutes=35", at_step=ten_minutes
    ).saved == [4, 8, 10]


def test_asked_to_save_and_stop_it_does_so_at_the_end_of_the_step(trained, tmp_path):
    workers = trained(at_step=lambda step: save_request.ask(tmp_path) if step == 3 else None)
    assert (workers.steps, workers.saved) == (3, [3])


def test_a_plateau_of_the_divergence_saves_the_step_and_ends(trained, tmp_path):
    """It falls by .2 a step to the fourth, and stays: the last three are equal at the sixth."""
    plateau = "s2d.until={plateau:{of:divergence,window:3,slope_se:0}}"
    workers = trained(plateau)
    assert (workers.steps, workers.saved) == (6, [4, 6])
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("6")
    assert ended(tmp_path) == (6, "divergence falls by 0 a step <= 0 x its standard error 0 over 3 values at step 6")


def test_a_clock_without_minutes_is_never_due():
    assert not SaveClock(None).due() and SaveClock(0).due()
