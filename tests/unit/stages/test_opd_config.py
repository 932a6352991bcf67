"""Check what the trainer s2d_opd refuses before it starts a worker: its constructor raises, Ray was never asked."""

from __future__ import annotations

import json

import pytest
import ray
from omegaconf import DictConfig
from verl.trainer.ppo.utils import Role

from tests.support.tiny import WORDS, write_model, write_tokenizer
from tests.support.tiny_verl import composed
from verl_s2d.errors import UserError
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal_registry import known_signals
from verl_s2d.stages.opd.config import OpdConfig, read_opd_config, read_opd_settings
from verl_s2d.stages.opd.served_models import ServedModels
from verl_s2d.stages.opd.trainer import OpdTrainer
from verl_s2d.stages.opd.worker import StudentTeacherWorker
from verl_s2d.stages.warmup.config_checks import read_warmup_settings
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.model_pair import check_tokens
from verl_s2d.verl_settings.overrides import hydra_value


def refused(config: DictConfig) -> UserError:
    with pytest.raises(UserError) as caught:
        OpdTrainer(config)
    assert not ray.is_initialized()
    assert caught.value.remedy
    return caught.value


TEACHER = FrozenModel(path="teacher")


def test_defaults():
    assert read_opd_config(composed()) == OpdConfig(signal=Sampled(), models={"teacher": TEACHER})


def test_every_setting_is_read():
    signals = {
        "jsd": ({"beta": 0.3, "keep_tokens": 0.5}, {"chunk_tokens": 64, "materialise_logits": True, "health_top_k": 8}),
        "sampled": ({"beta": 0.5, "whiten": True, "clip": 5.0}, {}),
    }
    chosen = {"skip_limit": 3, "save_minutes": 30, "poll_interval": 1}
    chosen["until"] = {"travel": None, "plateau": None, "sampled_tokens": 5}
    for kind, (keys, more) in signals.items():
        written = {f"signal.{key}": value for key, value in ({"type": kind} | keys).items()} | chosen | more
        config = composed(
            *(f"+s2d.{key}={hydra_value(value)}" for key, value in written.items()),
            "+s2d.teacher.trust_remote_code=true",
        )
        model = FrozenModel(path="teacher", trust_remote_code=True)
        expected = OpdConfig(signal=known_signals()[kind](**keys), models={"teacher": model}, **chosen, **more)
        assert read_opd_config(config) == expected
        assert read_opd_settings(expected.written()) == expected
        assert expected.written() == {
            "chunk_tokens": None,
            "materialise_logits": False,
            "health_top_k": None,
            "travel": False,
            "parse_rate": None,
            "problem_weights": None,
            "prefix": None,
            "teacher_prompt": None,
            "label_ledger": None,
            "prompt_ledger": None,
            "teacher_refresh": None,
        } | more | (
            chosen | {"signal": {"type": kind, "keep_tokens": None} | keys if kind == "jsd" else {"type": kind} | keys}
        ) | {"models": {"teacher": model.model_dump()}}


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        (["~s2d"], "s2d.teacher.path", None),
        (["s2d.teacher.path=null"], "s2d.teacher.path", None),
        (["s2d.teacher.path=''"], "s2d.teacher.path", ""),
        (["~s2d", "+s2d=teacher"], "s2d", "teacher"),
        (["~s2d", "+s2d.teacher=some/model"], "s2d.teacher", "some/model"),
        (["+s2d.signal.beta=much"], "s2d.signal.beta", "much"),
        (["+s2d.signal.beta=inf"], "s2d.signal.beta", float("inf")),
        (["+s2d.signal.whiten=1"], "s2d.signal.whiten", 1),
        (["+s2d.poll_interval=0"], "s2d.poll_interval", 0),
        (["+s2d.betta=1"], "s2d.betta", 1),
        (["+s2d.teacher.model=x"], "s2d.teacher.model", "x"),
        (["+s2d.signal.type=reverse"], "s2d.signal.type", "reverse"),
        (["+s2d.signal.type=jsd", "+s2d.signal.beta=1"], "s2d.signal.beta", 1),
        (["+s2d.signal.clip=0"], "s2d.signal.clip", 0),
        (["+s2d.signal.type=jsd", "+s2d.chunk_tokens=0.5"], "s2d.chunk_tokens", 0.5),
        (["+s2d.signal.type=jsd", "+s2d.materialise_logits=1"], "s2d.materialise_logits", 1),
        (["+s2d.skip_limit=0"], "s2d.skip_limit", 0),
        (["+s2d.signal.type=jsd", "+s2d.signal.keep_tokens=0"], "s2d.signal.keep_tokens", 0),
        (["+s2d.signal.type=jsd", "+s2d.health_top_k=x"], "s2d.health_top_k", "x"),
        (["algorithm.adv_estimator=grpo"], "algorithm.adv_estimator", "grpo"),
        (["actor_rollout_ref.actor.use_kl_loss=true"], "actor_rollout_ref.actor.use_kl_loss", True),
        (["algorithm.use_kl_in_reward=true"], "algorithm.use_kl_in_reward", True),
        (["reward.reward_model.enable=true"], "reward.reward_model.enable", True),
        (["distillation.enabled=true"], "distillation.enabled", True),
        (
            [
                "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false",
                "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=null",
            ],
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            None,
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_value(changes, key, value):
    error = refused(composed(*changes))
    assert (error.key, error.value) == (key, value)


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("actor_rollout_ref.actor.entropy_coeff=0.1", "actor_rollout_ref.actor.entropy_coeff", 0.1),
        ("algorithm.rollout_correction.rollout_is=token", "algorithm.rollout_correction.rollout_is", "token"),
        ("actor_rollout_ref.model.use_fused_kernels=true", "actor_rollout_ref.model.use_fused_kernels", True),
        (
            "actor_rollout_ref.actor.fsdp_config.pad_to_length=true",
            "actor_rollout_ref.actor.fsdp_config.pad_to_length",
            True,
        ),
        (
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
            2,
        ),
        (
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2",
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
            2,
        ),
    ],
)
def test_what_an_exact_divergence_would_silently_not_obey_is_refused(change, key, value):
    read_opd_config(composed(change, "+s2d.signal.type=sampled"))
    error = refused(composed(change, "+s2d.signal.type=reverse_kl"))
    assert (error.key, error.value) == (key, value)


def test_dynamic_batches_need_no_micro_batch_size():
    key = "actor_rollout_ref.ref.log_prob"
    read_opd_config(composed(f"{key}_micro_batch_size_per_gpu=null", f"{key}_use_dynamic_bsz=true"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_model(directory / "student", hidden=32)
    write_model(directory / "teacher", hidden=32, seed=1)
    return directory


def pair(models, teacher: str) -> DictConfig:
    return composed(**{"actor_rollout_ref.model.path": str(models / "student"), "+s2d.teacher.path": teacher})


def test_a_teacher_that_does_not_exist(models):
    error = refused(pair(models, str(models / "nowhere")))
    assert error.key == "s2d.teacher.path" and error.value == str(models / "nowhere")


def test_a_teacher_with_another_tokenizer_and_the_first_id_that_differs(models):
    words = list(WORDS)
    words[7], words[9] = words[9], words[7]
    write_model(models / "other", words=words)
    error = refused(pair(models, str(models / "other")))
    assert error.key == "s2d.teacher.path" and "first at id 7: '2' for the student, '4' for the teacher" in str(error)


def test_a_teacher_whose_vocabulary_is_smaller_than_the_ids_in_use(models):
    write_model(models / "small", words=WORDS[:-2])
    write_tokenizer(models / "small", WORDS)
    error = refused(pair(models, str(models / "small")))
    assert error.key == "s2d.teacher.path" and f"ids up to {len(WORDS) - 1}" in str(error)


def test_models_that_share_their_tokens_pass_and_remote_storage_is_left_to_verl(models):
    keys = {"student_key": "model", "teacher_key": "teacher"}
    assert check_tokens(str(models / "student"), str(models / "teacher"), **keys) == []
    assert check_tokens(str(models / "student"), "hdfs://somewhere/teacher", **keys) == []


LORA = {"actor_rollout_ref.model.lora_rank": 4, "actor_rollout_ref.model.lora.merge": True}


def test_with_lora_the_workers_still_have_a_reference_engine_and_it_is_the_teachers(monkeypatch):
    # Ray writes into the methods of a class that becomes an actor's; what verl's look like is another test's matter.
    monkeypatch.setattr(ray, "remote", lambda cls: cls)
    trainer = object.__new__(OpdTrainer)
    trainer.config = composed(**LORA)
    trainer.s2d = read_opd_config(trainer.config)
    trainer._frozen = trainer.s2d.models
    assert trainer._frozen == {"teacher": TEACHER}
    trainer._served = ServedModels(trainer.s2d, trainer.config)
    trainer._init_resource_pool_mgr()
    assert set(trainer.role_worker_mapping) == {Role.ActorRolloutRef}
    assert trainer.role_worker_mapping[Role.ActorRolloutRef] is StudentTeacherWorker
    assert set(trainer.resource_pool_manager.mapping) == {Role.ActorRolloutRef, Role.RewardModel}
    assert set(trainer.resource_pool_manager.resource_pool_spec) == {"global_pool"}


SERVED = ("+s2d.teacher.placement=server", "+s2d.teacher.server.num_replicas=2")


def test_a_served_teacher_has_a_pool_and_the_workers_have_no_reference_engine(monkeypatch):
    monkeypatch.setattr(ray, "remote", lambda cls: cls)
    trainer = object.__new__(OpdTrainer)
    trainer.config = composed(*SERVED, "+s2d.teacher.server.tensor_model_parallel_size=4")
    trainer.s2d = read_opd_config(trainer.config)
    assert read_opd_settings(trainer.s2d.written()) == trainer.s2d
    trainer._frozen = trainer.s2d.models
    trainer._served = ServedModels(trainer.s2d, trainer.config)
    trainer._init_resource_pool_mgr()
    assert trainer.role_worker_mapping == {Role.ActorRollout: StudentTeacherWorker}
    pools = trainer.resource_pool_manager.resource_pool_spec
    assert pools == {"global_pool": [8], "served_teacher": [4, 4]}


def test_equal_models_share_their_servers():
    chosen = ("+s2d.signal.type=exopd", "+s2d.models.base.path=teacher", "+s2d.models.base.placement=server")
    config = composed(*SERVED, *chosen)
    other = ServedModels(read_opd_config(config), config)
    same = composed(*SERVED, *chosen, "+s2d.models.base.server.num_replicas=2")
    assert set(other.pools()) == {"served_teacher", "served_base"}
    assert set(ServedModels(read_opd_config(same), same).pools()) == {"served_teacher"}


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        (["+s2d.signal.type=reverse_kl"], "s2d.teacher.placement", "server"),
        (["s2d.teacher.placement=moon"], "s2d.teacher.placement", "moon"),
        (["+s2d.teacher.trust_remote_code=true"], "s2d.teacher.trust_remote_code", True),
        (["+s2d.teacher.revision=main"], "s2d.teacher.revision", "main"),
        (["s2d.teacher.placement=colocated"], "s2d.teacher.server", {"num_replicas": 2}),
        (["+s2d.teacher.server.gpu_memory_utilization=1"], "s2d.teacher.server.gpu_memory_utilization", 1),
        (["+s2d.teacher.server.wait_minutes=0"], "s2d.teacher.server.wait_minutes", 0),
        (["actor_rollout_ref.rollout.temperature=0.7"], "actor_rollout_ref.rollout.temperature", 0.7),
        (["actor_rollout_ref.rollout.name=sglang"], "actor_rollout_ref.rollout.name", "sglang"),
    ],
)
def test_what_servers_cannot_do_is_refused(changes, key, value):
    error = refused(composed(*SERVED, *changes))
    assert (error.key, error.value) == (key, value)


def test_what_a_served_models_checkpoint_cannot_give_is_refused_before_anything_starts(tmp_path):
    model = str(write_model(tmp_path / "model"))
    context = json.loads((tmp_path / "model" / "config.json").read_text())["max_position_embeddings"]
    paths = ("actor_rollout_ref.model.path=" + model, "s2d.teacher.path=" + model)
    error = refused(composed(*SERVED, *paths, f"data.max_response_length={context - 8}"))
    assert error.key == "s2d.teacher.placement" and str(context) in error.problem
    error = refused(composed(*SERVED, *paths, "+s2d.signal.type=top_k", f"+s2d.signal.k={len(WORDS) + 1}"))
    assert (error.key, error.value) == ("s2d.signal.k", len(WORDS) + 1)


def test_a_top_k_is_not_asked_of_a_colocated_teacher():
    error = refused(composed("+s2d.signal.type=top_k"))
    assert (error.key, error.value) == ("s2d.teacher.placement", "colocated") and "forward_kl" in error.remedy


def test_the_warmup_takes_no_served_teacher():
    with pytest.raises(UserError) as caught:
        read_warmup_settings({"teacher": {"path": "t", "placement": "server"}})
    assert (caught.value.key, caught.value.value) == ("s2d.teacher.placement", "server") and caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_rank", -1),
        ("lora_alpha", 0),
        ("lora.merge", False),
        ("lora.rank", 8),
        ("lora_adapter_path", "some/adapter"),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
    ],
)
def test_lora_settings_that_this_stage_cannot_honour_are_refused(key, value):
    name = f"actor_rollout_ref.model.{key}"
    written = f"+{name}" if key == "target_parameters" else name
    error = refused(composed(**LORA | {written: value}))
    assert (error.key, error.value) == (name, value)


def test_lora_on_another_engine_is_refused():
    error = refused(composed("actor_rollout_ref.actor.strategy=veomni", **LORA))
    assert (error.key, error.value) == ("actor_rollout_ref.model.lora_rank", 4)
