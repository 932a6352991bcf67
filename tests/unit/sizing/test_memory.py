"""Bytes, tokens and FLOPs against closed forms worked out here, and the key that each misfit names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.training_sizes import FSDP, MEGATRON, MICRO, ROLLOUT, training
from verl_s2d.objectives.chunks import tokens_at_a_time
from verl_s2d.sizing.activations import activations, layer_bytes
from verl_s2d.sizing.cost import forward_flops, sampling_cost, training_cost
from verl_s2d.sizing.engine_memory import frozen_memory, trained_parameters, training_memory
from verl_s2d.sizing.generation import GRAPH_BYTES, generation
from verl_s2d.sizing.loss_memory import scoring_peak, update_peak
from verl_s2d.sizing.phases import Phase, fullest, training_phases
from verl_s2d.sizing.remedies import cache_remedy, remedy_for
from verl_s2d.sizing.shapes import PUBLISHED
from verl_s2d.stages import stages
from verl_s2d.verl_settings import from_verl
from verl_s2d.verl_settings.stage_sizes import MicroBatch
from verl_s2d.workflow.graph import Node

GIB = 2**30
SMALL, QWEN = PUBLISHED["Qwen/Qwen3-1.7B"], PUBLISHED["Qwen/Qwen3-8B"]
LLAMA = PUBLISHED["meta-llama/Llama-3.3-70B-Instruct"]


def test_fsdp_divides_sixteen_bytes_a_parameter():
    memory = training_memory(QWEN, FSDP)
    assert memory.parameters + memory.gradients + memory.optimizer == 16 * QWEN.parameters / 16
    assert memory.idle == memory.parameters and memory.idle_optimizer == 8 * QWEN.parameters / 16 and not memory.host


def test_offload_moves_what_is_idle_to_the_host():
    memory = training_memory(QWEN, replace(FSDP, param_offload=True, optimizer_offload=True))
    assert memory.idle == memory.idle_optimizer == 0 and memory.parameters == 4 * QWEN.parameters / 16
    assert memory.host == 12 * QWEN.parameters / 16


def test_a_frozen_model_of_fsdp_is_streamed_layer_by_layer():
    memory = frozen_memory(QWEN, replace(FSDP, streamed=True))
    assert memory.parameters == memory.gradients == memory.optimizer == memory.idle == 0
    assert memory.host == 4 * QWEN.parameters / 16
    assert memory.layer == QWEN.block_parameters * (2 + 4 / 16)


def test_gradients_that_wait_are_whole():
    deferred = replace(FSDP, deferred=True)
    assert training_memory(QWEN, deferred, micro_batches=4).accumulated == 4 * QWEN.parameters
    assert training_memory(QWEN, deferred, micro_batches=1).accumulated == 0


def test_adapters_alone_have_gradients_and_states():
    engine = replace(FSDP, world=1, shards=1, held_bytes=2, lora_rank=32, lora_targets=("q_proj", "v_proj"))
    adapters = 36 * 32 * ((4096 + 4096) + (4096 + 1024))
    assert trained_parameters(QWEN, engine) == adapters
    memory = training_memory(QWEN, engine)
    assert memory.optimizer == 2 * 2 * adapters and memory.gradients == 2 * adapters
    assert memory.parameters == 2 * (QWEN.parameters + adapters) and memory.embedding_gradients == 0
    everywhere = replace(engine, lora_targets="all-linear")
    assert trained_parameters(QWEN, everywhere) == 36 * 32 * sum(sum(ends) for ends in QWEN.matrices.values())


def test_megatron_holds_six_bytes_and_divides_twelve():
    engine = replace(MEGATRON, tensor=8, pipeline=1, distributed_optimizer=True)
    memory, local = training_memory(LLAMA, engine), LLAMA.parameters / 8
    assert memory.parameters + memory.gradients == pytest.approx(6 * local, rel=1e-4)
    assert memory.optimizer == pytest.approx(12 * local / 2, rel=1e-4)
    staged = training_memory(LLAMA, replace(engine, pipeline=2))
    layers = LLAMA.layers * LLAMA.block_parameters / 2
    assert staged.parameters == 2 * (layers + LLAMA.embedding_parameters) / 8


def test_activations_of_a_layer():
    # bf16: 2 norms of 8 H, normalised heads of 8 (A + K), values and attention 2 (K + A), feed-forward 8 I.
    bytes_a_token = 16 * 4096 + 8 * (4096 + 1024) + 2 * (1024 + 4096) + 8 * 12288
    assert layer_bytes(QWEN, FSDP) == bytes_a_token
    whole = activations(QWEN, FSDP, 1000)
    assert whole.kept == 36 * 1000 * bytes_a_token and whole.recomputed == 0
    saved = activations(QWEN, replace(FSDP, checkpointing=1), 1000)
    assert saved.kept == 36 * 1000 * 2 * 4096 and saved.recomputed == 1000 * bytes_a_token
    shared = replace(MEGATRON, tensor=4, pipeline=2, sequence_parallel=True)
    assert layer_bytes(QWEN, shared) == bytes_a_token / 4
    assert layer_bytes(QWEN, replace(shared, sequence_parallel=False)) > bytes_a_token / 4
    assert activations(QWEN, shared, 1000, micro_batches=4).kept == 2 * 18 * 1000 * bytes_a_token / 4


def test_peak_of_the_loss():
    tokens, ids = 18_432, 151_936
    policy = training()
    assert update_peak(policy, QWEN, None, tokens) == tokens * ids * 2
    assert update_peak(replace(policy, entropy=True), QWEN, None, tokens) == tokens * ids * 4
    assert update_peak(replace(policy, fused=True), QWEN, None, tokens) == 512 * ids * 6 + tokens * 4096 * 2
    chunked = replace(policy, loss="divergence", chunk_tokens=1024)
    assert update_peak(chunked, SMALL, QWEN, tokens) == (
        4 * 1024 * ids * 4 + ids * 2048 * 4 + tokens * (2048 * 4 + 4096 * 2)
    )
    whole = replace(policy, loss="logits", chunk_tokens=1024)
    assert update_peak(whole, SMALL, QWEN, tokens) == 3 * tokens * ids * 2 + 4 * 1024 * ids * 4
    assert scoring_peak(policy, QWEN, tokens, entropy=True) == tokens * ids * 2
    assert scoring_peak(replace(policy, compiled=False), QWEN, tokens, entropy=True) == tokens * ids * 14
    sharded = training(replace(MEGATRON, tensor=4))
    # Megatron's logits are fp32 in whatever precision its layers work, and so are the probabilities beside them.
    assert update_peak(sharded, QWEN, None, tokens) == scoring_peak(sharded, QWEN, tokens, entropy=False)
    assert update_peak(sharded, QWEN, None, tokens) == tokens * ids / 4 * 8
    assert scoring_peak(sharded, QWEN, tokens, entropy=True) == tokens * ids / 4 * 12
    both = replace(sharded, loss="logits", chunk_tokens=1024)
    assert update_peak(both, SMALL, QWEN, tokens) == tokens * ids / 4 * 12 + 4 * 1024 * ids / 4 * 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_default_chunk_is_the_one_that_the_objectives_take(device):
    settings = {"trainer": {"device": device}}
    assert from_verl._chunk(settings) == tokens_at_a_time(None, torch.device(device))
    assert from_verl._chunk(settings | {"s2d": {"chunk_tokens": None}}) == from_verl._chunk(settings)
    assert from_verl._chunk(settings | {"s2d": {"chunk_tokens": 7}}) == 7


def test_vllms_cache():
    found = generation(ROLLOUT, QWEN, 18_432, 80 * GIB)
    assert found.token_bytes == 2 * 36 * 8 * 128 * 2 / 2
    working = 8192 * 2 * (2 * 4096 + 12288) + 256 * 151_936 * 8 + GRAPH_BYTES
    assert found.cache == pytest.approx(0.6 * 80 * GIB - QWEN.parameters * 2 / 2 - working)
    assert found.fits == int(found.cache // (found.token_bytes * 18_432)) and found.replicas == 8
    # Eight heads of keys on sixteen GPUs: each has a copy of one.
    assert generation(replace(ROLLOUT, tensor=16), QWEN, 18_432, 80 * GIB).token_bytes == 2 * 36 * 128 * 2


def test_phases_of_a_step_and_what_each_loads():
    offloaded = replace(FSDP, param_offload=True, optimizer_offload=True, checkpointing=1)
    stage = training(offloaded, reference=replace(FSDP, streamed=True), reference_scoring=MICRO)
    sampler = generation(ROLLOUT, QWEN, stage.longest, 80 * GIB)
    phases = {phase.name: phase for phase in training_phases(stage, QWEN, None, sampler, process_bytes=0)}
    assert list(phases) == ["loading", "rollout", "log-probs", "reference", "update", "weight sync"]
    # All of the reference's shard goes through the GPU once, and its largest tensor whole.
    assert phases["loading"].terms == {"teacher": 4 * (QWEN.parameters / 16 + QWEN.embedding_parameters)}
    assert phases["rollout"].terms == {"rollout engine": 48 * GIB}
    assert "optimizer" not in phases["log-probs"].terms and "parameters" not in phases["reference"].terms
    assert phases["update"].terms["optimizer"] == 8 * QWEN.parameters / 16
    # vLLM's context and CUDA graphs stay on the GPU while it sleeps.
    assert all(phases[name].terms["rollout engine"] == GRAPH_BYTES for name in ("log-probs", "reference", "update"))
    bucket = ROLLOUT.bucket_bytes
    assert phases["weight sync"].terms["rollout engine"] == sampler.weights + GRAPH_BYTES + bucket
    awake = replace(stage, rollout=replace(ROLLOUT, sleeps=False))
    always = {phase.name: phase for phase in training_phases(awake, QWEN, None, sampler, process_bytes=0)}
    assert all(always[name].terms["rollout engine"] == 48 * GIB for name in phases if name != "loading")


def test_a_micro_batch_by_tokens_holds_its_budget():
    budget = MicroBatch(None, 36_864, "actor.ppo_max_token_len_per_gpu")
    assert budget.tokens_per_gpu(18_432, FSDP) == 36_864 and budget.sequences_at_most(18_432, FSDP) == 2
    assert budget.tokens_per_gpu(40_000, replace(FSDP, ulysses=2)) == 36_864
    for name, stage in (("update", training(update=budget)), ("log-probs", training(scoring=budget))):
        sampler = generation(ROLLOUT, QWEN, stage.longest, 80 * GIB)
        phases = {phase.name: phase for phase in training_phases(stage, QWEN, None, sampler)}
        assert phases[name].terms["logits and loss"] == 36_864 * 151_936 * 2


def test_the_teacher_is_there_in_the_students_update():
    stage = replace(
        training(replace(FSDP, checkpointing=1)),
        loss="divergence",
        scoring=None,
        reference=replace(FSDP, streamed=True),
    )
    phases = training_phases(stage, SMALL, QWEN, None)
    assert [phase.name for phase in phases] == ["loading", "update"] and phases[1].terms["teacher"] > 0
    # The student is there already when its teacher is loaded.
    assert phases[0].terms["parameters"] == 4 * SMALL.parameters / 16


@pytest.mark.parametrize(
    ("stage", "phase", "words"),
    [
        (training(), Phase("rollout", {"parameters": 9, "rollout engine": 5}), "fsdp_config.param_offload: true"),
        (training(), Phase("rollout", {"rollout engine": 5}), "lower rollout.gpu_memory_utilization"),
        (training(), Phase("loading", {"parameters": 9, "teacher": 9}), "fsdp_config.param_offload: true"),
        (
            training(reference=replace(FSDP, section="ref.fsdp_config")),
            Phase("loading", {"teacher": 9}),
            "set ref.fsdp_config.model_dtype: bf16",
        ),
        (training(), Phase("update", {"activations": 9}), "enable_gradient_checkpointing: true"),
        (training(MEGATRON), Phase("update", {"activations": 9}), "recompute_granularity: full"),
        (training(replace(FSDP, deferred=True)), Phase("update", {"gradients": 9}), "use_no_sync"),
        (
            training(update=replace(MICRO, sequences=4)),
            Phase("update", {"logits and loss": 9}),
            "lower actor.ppo_micro",
        ),
        (training(), Phase("update", {"logits and loss": 9}), "use_fused_kernels: true"),
        (training(MEGATRON), Phase("update", {"logits and loss": 9}), "raise actor.megatron.context_parallel_size"),
        (training(), Phase("update", {"optimizer": 9}), "raise cluster.nodes"),
        (training(MEGATRON), Phase("update", {"optimizer": 9}), "raise actor.megatron.tensor_model_parallel_size"),
        (training(), Phase("log-probs", {"optimizer": 9}), "optimizer_offload: true"),
        (
            training(scoring=MicroBatch(None, 99_999, "rollout.log_prob_max_token_len_per_gpu")),
            Phase("log-probs", {"logits and loss": 9}),
            "lower rollout.log_prob_max_token_len_per_gpu",
        ),
        (
            training(rollout=replace(ROLLOUT, sleeps=False)),
            Phase("update", {"rollout engine": 9}),
            "rollout.free_cache_engine: true",
        ),
    ],
)
def test_the_key_to_change(stage, phase, words):
    assert words in remedy_for(phase, stage)


def test_the_key_to_change_when_the_cache_is_too_small():
    whole = generation(ROLLOUT, LLAMA, 18_432, 80 * GIB)
    assert whole.fits == 0 and "raise rollout.tensor_model_parallel_size" in cache_remedy(whole, ROLLOUT)
    narrow = replace(ROLLOUT, utilization=0.06)
    tight = generation(narrow, SMALL, 18_432, 80 * GIB)
    assert tight.fits == 0 and "gpu_memory_utilization" in cache_remedy(tight, narrow)


def test_cost_of_a_grpo_stage():
    node = Node(stages()["grpo"], "stage", {"steps": 10})
    stage = training(reference=FSDP, reference_scoring=MICRO)
    cost = training_cost(node, stage, QWEN, [], prompt=2048, response=16_384)
    assert cost.sampled_tokens == 10 * 1024 * 16_384 and cost.verifier_calls == 10 * 1024 and cost.updates == 160
    matrices = QWEN.parameters - QWEN.embedding_parameters - 4096
    own = 2 * matrices + 2 * 36 * 4096 * 18_432
    assert forward_flops(QWEN, 18_432) == own
    assert cost.pass_flops == 10 * 1024 * 18_432 * (3 + 1 + 1) * own and cost.teacher_scored_tokens == 0
    assert cost.sampling_flops == 10 * 1024 * 18_432 * own
    assert cost.gpu_hours(165) == pytest.approx(6 * cost.gpu_hours(990)) and cost.gpu_hours(165) > 0
    assert cost.gpu_hours(None) is None, "a CPU"


def test_cost_of_distillation_and_of_what_is_not_known():
    warmup = training(rollout=None, scoring=None, reference=FSDP, batch=64)
    cost = training_cost(Node(stages()["warmup"], "w", {"steps": 5}), warmup, SMALL, [QWEN], prompt=8, response=8)
    assert (cost.sampled_tokens, cost.teacher_scored_tokens, cost.verifier_calls) == (0, 5 * 64 * 8, 0)
    assert cost.pass_flops == 5 * 64 * 16 * (3 * forward_flops(SMALL, 18_432) + forward_flops(QWEN, 18_432))
    stored = replace(warmup, reference=None, loss="divergence")
    cost_of_stored = training_cost(Node(stages()["warmup"], "w", {"steps": 5}), stored, SMALL, [], prompt=8, response=8)
    assert cost_of_stored.teacher_scored_tokens == 5 * 64 * 8, "the cache answers for the teacher"
    assert cost_of_stored.pass_flops == 5 * 64 * 16 * 3 * forward_flops(SMALL, 18_432)
    kept = Node(stages()["warmup"], "w", {"steps": 5, "signal": {"type": "forward_kl", "keep_tokens": 0.5}})
    measured = training_cost(kept, warmup, SMALL, [QWEN], prompt=8, response=8)
    both = forward_flops(SMALL, 18_432) + forward_flops(QWEN, 18_432)
    assert measured.pass_flops == cost.pass_flops + 5 * 64 * 16 * both, "a first pass over both models"
    matched = training_cost(Node(stages()["warmup"], "w", {"steps": None}), warmup, SMALL, [QWEN], prompt=8, response=8)
    assert matched.updates is None and matched.teacher_scored_tokens is None and matched.gpu_hours(989) is None
    unknown = sampling_cost(None, QWEN, prompt=8, response=8, scored=False)
    assert unknown.sampled_tokens is None and unknown.gpu_hours(989) is None and unknown.verifier_calls == 0
    assert sampling_cost(24, None, prompt=8, response=9, scored=True).verifier_calls == 24


def test_the_fullest_phase():
    assert fullest([Phase("a", {"x": 1}), Phase("b", {"x": 1, "y": 1})]).name == "b"
