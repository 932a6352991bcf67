"""Parallel sizes that do not fit are refused by key, with what to choose instead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.training_sizes import FSDP, MEGATRON, MICRO, ROLLOUT, training
from verl_s2d.errors import UserError
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.sizing.layouts import check_rollout, check_training
from verl_s2d.sizing.shapes import PUBLISHED
from verl_s2d.verl_settings.stage_sizes import MicroBatch, Training

QWEN, LLAMA = PUBLISHED["Qwen/Qwen3-14B"], PUBLISHED["meta-llama/Llama-3.3-70B-Instruct"]
CLUSTER = Cluster(nodes=2, gpus_per_node=8)


def check(stage: Training, model=QWEN, teacher=None) -> None:
    check_training("stage", stage, model, teacher, CLUSTER)


@pytest.mark.parametrize("engine", [FSDP, replace(FSDP, ulysses=8), MEGATRON, replace(MEGATRON, context=2)])
def test_sizes_that_fit(engine):
    check(training(engine))
    check(training(engine), model=None)


@pytest.mark.parametrize(
    ("stage", "key", "remedy"),
    [
        (training(replace(FSDP, ulysses=3)), "fsdp_config.ulysses_sequence_parallel_size", "product divides 16"),
        (training(replace(FSDP, ulysses=16)), "ulysses_sequence_parallel_size", "divisor of 40"),
        (training(replace(FSDP, shards=5)), "fsdp_config.fsdp_size", "divisor of 16"),
        (training(replace(MEGATRON, tensor=3)), "megatron.tensor_model_parallel_size", "product divides 16"),
        (training(replace(MEGATRON, pipeline=8)), "megatron.pipeline_model_parallel_size", "has to divide 4"),
        (training(replace(MEGATRON, context=4)), "megatron.context_parallel_size", "has to divide 2"),
        (training(replace(MEGATRON, tensor=16, pipeline=1)), "megatron.tensor_model_parallel_size", "divisor of 40"),
        (training(replace(MEGATRON, tensor=1, pipeline=16)), "megatron.pipeline_model_parallel_size", "divisor of 40"),
        (training(MEGATRON, reference=replace(MEGATRON, section="ref.megatron", tensor=8)), "ref.megatron", "it to 4"),
        (training(mini_batch=24), "actor.ppo_mini_batch_size", "rollout.n a multiple of 16"),
        (training(batch=72), "data.train_batch_size", "multiple of 16"),
        (training(mini_batch=24, batch=24, rollout=None), "data.train_batch_size", "multiple of 16"),
        (training(update=replace(MICRO, sequences=3)), "ppo_micro_batch_size_per_gpu", "divisor of 4"),
        (training(update=MicroBatch(None, 16_384, "actor.ppo_max_token_len_per_gpu")), "ppo_max_token_len", "18432"),
        (training(scoring=MicroBatch(None, 4096, "rollout.log_prob_max_token_len_per_gpu")), "log_prob_max", "18432"),
        (training(rollout=replace(ROLLOUT, tensor=3)), "rollout.tensor_model_parallel_size", "divisor of 16"),
        (training(rollout=replace(ROLLOUT, tensor=16)), "rollout.tensor_model_parallel_size", "divisor of 40"),
        (training(rollout=replace(ROLLOUT, pipeline=3)), "rollout.pipeline_model_parallel_size", "divisor of 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_do_not(stage, key, remedy):
    with pytest.raises(UserError) as refused:
        check(stage)
    assert key in refused.value.key and remedy in refused.value.remedy, refused.value


def test_a_sequence_divided_among_gpus_needs_a_share_of_the_token_budget():
    budget = MicroBatch(None, 9216, "actor.ppo_max_token_len_per_gpu")
    check(training(replace(FSDP, ulysses=2), update=budget))


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"kv_heads": 6, "heads": 48}, "divisor or a multiple of 6"),
        ({"vocabulary": 151_937}, "divisor of 151937"),
        ({"intermediate": 17_410}, "divisor of 17410"),
    ],
)
def test_models_that_tensor_parallelism_cannot_divide(change, remedy):
    with pytest.raises(UserError) as refused:
        check(training(MEGATRON), replace(QWEN, **change))
    assert "megatron.tensor_model_parallel_size" in refused.value.key and remedy in refused.value.remedy


def test_the_teachers_own_heads_count():
    ten_heads = replace(QWEN, heads=10, kv_heads=2)
    with pytest.raises(UserError, match="10 attention heads"):
        check(training(MEGATRON, reference=replace(MEGATRON, section="ref.megatron")), QWEN, ten_heads)


def test_vllm_over_a_part_of_two_nodes():
    wide = replace(ROLLOUT, world=48, tensor=16)
    check_rollout("stage", wide, LLAMA, Cluster(nodes=6, gpus_per_node=8))
    with pytest.raises(UserError, match="neither a part of a node's 6 nor whole nodes"):
        check_rollout("stage", wide, LLAMA, Cluster(nodes=8, gpus_per_node=6))
