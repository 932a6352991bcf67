"""Check what the warmup refuses, with key and remedy, and the order in which it reads its cache."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verl.utils.config import omega_conf_to_dataclass

from tests.support.tiny import WORDS
from tests.support.warmup_configuration import configuration
from verl_s2d.errors import UserError
from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT
from verl_s2d.stages.shared.problem_weights import MeasuredWeights
from verl_s2d.stages.warmup.config_checks import check_cache, check_models, check_settings
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts, ShuffledPasses


def write_cache(path, prompt=(3, 4), response=(5, 1), count=4):
    rows = [{"prompt_ids": list(prompt), "response_ids": list(response)}] * count
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def check(warmup_models, cache, *overrides) -> int:
    config = configuration(warmup_models, *overrides)
    check_settings(config)
    return check_cache(config, omega_conf_to_dataclass(config.model), CachedRollouts(cache))


def test_good_input_gives_the_size_of_the_shared_vocabulary(warmup_models, tmp_path):
    assert check(warmup_models, write_cache(tmp_path / "c.parquet")) == len(WORDS)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("s2d.teacher.path=null", "s2d.teacher.path"),
        ("+s2d.signal.type=forward_kl_topk", "s2d.signal.type"),
        ("model.path=null", "model.path"),
        ("engine.strategy=torchtitan", "engine.strategy"),
        ("engine=veomni", "engine.strategy"),
        ("s2d.skip_limit=0", "s2d.skip_limit"),
        ("s2d.chunk_tokens=0", "s2d.chunk_tokens"),
        ("s2d.materialise_logits=1", "s2d.materialise_logits"),
        ("trainer.device=cpu", "engine.strategy"),
        ("engine.pad_to_length=true", "engine.pad_to_length"),
        ("model.use_fused_kernels=true", "model.use_fused_kernels"),
        ("engine.ulysses_sequence_parallel_size=2", "engine.ulysses_sequence_parallel_size"),
        ("model.lora.rank=8", "model.lora.rank"),
        ("trainer.n_gpus_per_node=3", "data.train_batch_size"),
        ("data.train_batch_size=0", "data.train_batch_size"),
        ("data.train_batch_size=8", "data.train_batch_size"),
        ("data.micro_batch_size_per_gpu=3", "data.micro_batch_size_per_gpu"),
        ("data.micro_batch_size_per_gpu=0", "data.micro_batch_size_per_gpu"),
        ("trainer.total_training_steps=0", "trainer.total_training_steps"),
        ("trainer.save_freq=0", "trainer.save_freq"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_key(warmup_models, tmp_path, override, key):
    with pytest.raises(UserError) as error:
        check(warmup_models, write_cache(tmp_path / "c.parquet"), override)
    assert error.value.key == key and error.value.remedy


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("engine.pipeline_model_parallel_size=4", "engine.pipeline_model_parallel_size"),
        ("engine.use_dist_checkpointing=true", "engine.use_dist_checkpointing"),
        ("engine.virtual_pipeline_model_parallel_size=2", "engine.virtual_pipeline_model_parallel_size"),
        ("engine.dynamic_context_parallel=true", "engine.dynamic_context_parallel"),
        ("engine.tensor_model_parallel_size=3", "engine.tensor_model_parallel_size"),
        ("trainer.device=cpu", "engine.strategy"),
        ("model.lora_rank=8", "model.lora_rank"),
    ],
)
def test_megatron_is_taken_in_layouts_in_which_the_teacher_can_be_asked(warmup_models, tmp_path, override, key):
    megatron = ("engine=megatron", "engine.tensor_model_parallel_size=2", "trainer.n_gpus_per_node=4")
    megatron += ("data.micro_batch_size_per_gpu=2",)
    cache = write_cache(tmp_path / "c.parquet")
    for layout in ((), ("engine.pipeline_model_parallel_size=2",)):
        assert check(warmup_models, cache, *megatron, *layout) == len(WORDS)
    with pytest.raises(UserError) as error:
        check(warmup_models, cache, *megatron, override)
    assert error.value.key == key and error.value.remedy


def test_ids_beyond_the_teacher_and_rollouts_beyond_the_context_are_refused(warmup_models, tmp_path):
    cache = write_cache(tmp_path / "c.parquet", response=(20, 1))
    with pytest.raises(UserError, match="token id 20") as error:
        check(warmup_models, cache, f"s2d.teacher.path={warmup_models}/small-vocabulary")
    assert error.value.key == "s2d.teacher.path"
    with pytest.raises(UserError, match="context of 128"):
        check(warmup_models, write_cache(tmp_path / "long.parquet", response=[5] * 200))


def test_a_rollout_longer_than_a_micro_batch_may_be_is_refused(warmup_models, tmp_path):
    cache = write_cache(tmp_path / "c.parquet", response=[5] * 20)
    dynamic = ("data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=21")
    with pytest.raises(UserError, match="22 tokens") as error:
        check(warmup_models, cache, *dynamic)
    assert error.value.key == "data.max_token_len_per_gpu"
    check(warmup_models, cache, dynamic[0], "data.max_token_len_per_gpu=22")


def test_models_that_cannot_be_read_or_differ_in_tokens_are_refused(warmup_models):
    for path, problem in (("nowhere", "cannot be read"), ("small-vocabulary", "tokenizers differ")):
        with pytest.raises(UserError, match=problem) as error:
            check_models(configuration(warmup_models, f"s2d.teacher.path={warmup_models}/{path}"))
        assert error.value.key == "s2d.teacher.path"


def test_a_student_that_no_checkpoint_could_hold_is_refused_before_the_first_step(warmup_models, tmp_path):
    student = shutil.copytree(warmup_models / "student", tmp_path / "student")
    (student / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    with pytest.raises(UserError, match="temperature") as error:
        check_models(configuration(warmup_models, f"model.path={student}"))
    assert error.value.key == "model.path"


NO_IDS = pa.array([[]], pa.list_(pa.int32()))
DAMAGED = {
    "no column": {"prompt_ids": [[1]]},
    "no response": {"prompt_ids": [[1]], "response_ids": NO_IDS},
    "no rows": {"prompt_ids": NO_IDS[:0], "response_ids": NO_IDS[:0]},
    "no prompt": {"prompt_ids": NO_IDS, "response_ids": [[1]]},
    "missing row": {"prompt_ids": [[1], None], "response_ids": [[1], [1]]},
    "missing id": {"prompt_ids": [[1, None]], "response_ids": [[1]]},
    "negative id": {"prompt_ids": [[1]], "response_ids": [[-1]]},
    "text": {"prompt_ids": ["a"], "response_ids": ["b"]},
}


@pytest.mark.parametrize("damage", ["missing", "garbage", *DAMAGED])
def test_a_cache_that_cannot_be_used_is_refused(tmp_path, damage):
    path = tmp_path / "c.parquet"
    if damage == "garbage":
        path.write_bytes(b"not parquet")
    elif damage in DAMAGED:
        pq.write_table(pa.table(DAMAGED[damage]), path)
    with pytest.raises(UserError) as error:
        CachedRollouts(str(path))
    assert error.value.key == "data.train_files" and error.value.remedy


def test_a_rollout_is_prompt_and_response_with_the_mask_on_the_response(tmp_path):
    rows = {"prompt_ids": [[1, 2], [4], [5]], "response_ids": [[3], [], [6, 7]]}
    pq.write_table(pa.table(rows), tmp_path / "c.parquet", row_group_size=1)
    rollouts = CachedRollouts(str(tmp_path / "c.parquet"))
    assert (len(rollouts), rollouts.largest_id, rollouts.longest) == (2, 7, 3)
    assert [{k: v.tolist() for k, v in rollouts[i].items()} for i in range(2)] == [
        {"input_ids": [1, 2, 3], "position_ids": [0, 1, 2], "loss_mask": [0, 0, 1]},
        {"input_ids": [5, 6, 7], "position_ids": [0, 1, 2], "loss_mask": [0, 1, 1]},
    ]


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 5))
def test_passes_are_whole_shuffles_in_an_order_that_follows_from_the_seed(size, total, seed):
    order = list(ShuffledPasses(size, total, seed))
    assert len(order) == total == len(ShuffledPasses(size, total, seed))
    assert order == list(ShuffledPasses(size, total, seed))
    for begin in range(0, total - size + 1, size):
        assert sorted(order[begin : begin + size]) == list(range(size))


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "rates.json").write_text('{"a": 0.5, "b": 0.25, "c": 1.0}')
    return MeasuredWeights(path=str(tmp_path / "rates.json"))


def write_rollouts(path, problems):
    rows = [{"prompt_ids": [3, 4], "response_ids": [5] * (i != 1), "problem_id": p} for i, p in enumerate(problems)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_a_rollout_carries_the_weight_of_its_problem(tmp_path, weights):
    """The second rollout has no response and is left out."""
    cache = CachedRollouts(write_rollouts(tmp_path / "c.parquet", ["a", "b", "c", "b"]), weights)
    mean = (0.25 + 0.1875) / 3
    assert [row[PROBLEM_WEIGHT].tolist() for row in cache] == [pytest.approx([w / mean]) for w in (0.25, 0, 0.1875)]
    assert PROBLEM_WEIGHT not in CachedRollouts(write_rollouts(tmp_path / "c.parquet", ["a", "b"]))[0]


def test_a_rollout_without_a_weight_is_refused(tmp_path, weights):
    with pytest.raises(UserError, match="no pass rate, for example d") as error:
        CachedRollouts(write_rollouts(tmp_path / "c.parquet", ["a", "d"]), weights)
    assert error.value.key == "s2d.problem_weights.path"
    with pytest.raises(UserError, match="cannot be read") as error:
        CachedRollouts(write_cache(tmp_path / "c.parquet"), weights)
    assert error.value.key == "data.train_files" and "problem_id" in error.value.remedy
