"""Workers wait for rank 0's export as long as slow storage takes: the process group that verl finds has that limit."""

from __future__ import annotations

import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from torch.distributed import distributed_c10d
from verl.utils import distributed
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from verl_s2d.platforms import process_group
from verl_s2d.stages.grpo.trainer import GrpoTrainer
from verl_s2d.stages.opd.worker import StudentTeacherWorker
from verl_s2d.stages.shared.rollout_worker import RolloutWorker
from verl_s2d.stages.warmup.worker import WarmupWorker


def timeout() -> timedelta:
    """Limit of the default group on this rank's device."""
    group = distributed_c10d._get_default_group()
    return group._get_backend(torch.device("cpu")).options._timeout


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    yield
    distributed.destroy_global_process_group()


def test_verl_takes_the_group_that_is_there_with_its_limit():
    process_group.initialize_process_group()
    distributed.initialize_global_process_group_ray(timeout_second=None)
    assert timeout() == timedelta(hours=2)
    torch.distributed.barrier()


@pytest.mark.parametrize("worker", [RolloutWorker, StudentTeacherWorker])
def test_workers_of_1_2b_and_3_make_it_before_verl_s_engines(monkeypatch, worker):
    seen = []
    monkeypatch.setattr(ActorRolloutRefWorker, "init_model", lambda self: seen.append(timeout()))
    made = object.__new__(worker)
    made._settings = SimpleNamespace(is_loss=False)
    made.init_model()
    assert seen == [timedelta(hours=2)]


def test_the_warmup_s_worker_makes_it_before_verl_s_engine(monkeypatch):
    class Built(Exception):
        pass

    def build(self, config):
        assert timeout() == timedelta(hours=2)
        raise Built

    monkeypatch.setattr(TrainingWorker, "__init__", build)
    with pytest.raises(Built):
        WarmupWorker(None, settings={"teacher": {"path": "t"}}, vocab_size=2)


def test_grpo_s_trainer_has_that_worker():
    """Role by role, as verl maps them with and without a reference policy."""
    from verl.trainer.ppo.utils import Role
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    for role in (Role.ActorRollout, Role.ActorRolloutRef):
        trainer = object.__new__(GrpoTrainer)
        with pytest.MonkeyPatch.context() as patch:
            workers = {role: "verl's", Role.Critic: "verl's"}

            def init(self, workers=workers):
                self.role_worker_mapping = workers

            patch.setattr(PPOTrainer, "_init_resource_pool_mgr", init)
            trainer._init_resource_pool_mgr()
        assert trainer.role_worker_mapping[role].__ray_metadata__.modified_class.__mro__[1] is RolloutWorker
        assert trainer.role_worker_mapping[Role.Critic] == "verl's"
