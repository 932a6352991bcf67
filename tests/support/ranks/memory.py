"""Estimated against measured memory of updates in verl's FSDP2 engines, on the CPU, each rank of a group for itself.

python -m tests.support.ranks.memory RANK WORLD DIRECTORY
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from tests.support.ranks.group import work
from tests.support.tiny import WORDS, write_tokenizer
from verl_s2d.sizing.phases import training_phases
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.stages import stages
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.opd.worker import StudentTeacherWorker
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

TOLERANCE = 0.25
PROMPT = 8


@dataclass(frozen=True)
class Case:
    """An update. Sequences all have `longest` tokens; `verl` are further overrides of its configuration."""

    student: ModelShape
    teacher: ModelShape | None = None
    longest: int = 64
    sequences: int = 4
    micro: int = 4
    verl: dict[str, object] = field(default_factory=dict)


def _shape(hidden: int, layers: int, vocabulary: int, *, tied: bool = False) -> ModelShape:
    return ModelShape(hidden, 3 * hidden, layers, hidden // 32, hidden // 64, 32, vocabulary, tied, qk_norm=True)


_WIDE, _DEEP, _WORDY = _shape(512, 3, 2048), _shape(128, 6, 512), _shape(128, 2, 16_384)
_TEACHER = _shape(256, 3, 16_384)
_LONG = {"longest": 2048, "sequences": 1, "micro": 1}
_BF16 = {"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": "bf16"}
_ALL = {"actor_rollout_ref.model.enable_gradient_checkpointing": False}
_DEFERRED = {"actor_rollout_ref.actor.fsdp_config.use_no_sync_for_gradient_accumulation": True}
_LORA = {"actor_rollout_ref.model.lora_rank": 16, "actor_rollout_ref.model.target_modules": "all-linear"}
_CHUNKS = {"+s2d.chunk_tokens": 64}
CASES = {
    "parameters": Case(_WIDE),
    "parameters, tied, bf16": Case(_shape(512, 3, 8192, tied=True), verl=_BF16),
    "gradients wait whole": Case(_WIDE, micro=1, verl=_DEFERRED),
    "checkpointed": Case(_DEEP, **_LONG),
    "all activations, bf16": Case(_DEEP, **_LONG, verl=_ALL | _BF16),
    "logits": Case(_WORDY, longest=128),
    "adapters": Case(_WIDE, verl=_LORA),
    "divergence": Case(_WORDY, _TEACHER, longest=128, verl=_CHUNKS),
    "divergence from logits": Case(_WORDY, _TEACHER, longest=128, verl=_CHUNKS | {"+s2d.materialise_logits": True}),
}
SHARDED = ("parameters", "divergence")
"""What is measured on two ranks too."""


def cases(world: int):
    chosen = {name: case for name, case in CASES.items() if world == 1 or name in SHARDED}
    return {name: lambda rank, world, name=name, case=case: _check(name, case, world) for name, case in chosen.items()}


def _check(name: str, case: Case, world: int) -> None:
    directory = Path(sys.argv[3])
    if torch.distributed.get_rank() == 0:
        for role, shape in (("student", case.student), ("teacher", case.teacher)):
            if shape is not None:
                # A divergence works on ids that mean something, the other losses on all.
                write_shape(directory / name / role, shape, shape.vocabulary if case.teacher else len(WORDS))
    torch.distributed.barrier()
    config = compose_case(directory / name, case, world)
    kind = "grpo" if case.teacher is None else "opd"
    training = stages()[kind].demand(OmegaConf.to_container(config, resolve=True), case.longest)
    phases = training_phases(training, case.student, case.teacher, None, process_bytes=0)
    estimate = next(phase for phase in phases if phase.name == "update")
    measured = _measure(config, case)
    ratio = estimate.total / measured
    parts = {term: round(size / 2**20, 1) for term, size in estimate.terms.items()}
    figures = f"{name}, {world} ranks: estimated {estimate.total / 2**20:.1f} MiB, measured {measured / 2**20:.1f}"
    print(f"{figures}, ratio {ratio:.2f}, {json.dumps(parts)}", flush=True)
    assert abs(ratio - 1) <= TOLERANCE, f"{figures}; {parts}"


def compose_case(models: Path, case: Case, world: int) -> DictConfig:
    """verl's configuration of a case's update; `models` has its checkpoints."""
    chosen = {
        "actor_rollout_ref.model.path": str(models / "student"),
        # As on a GPU, whose memory is estimated.
        "actor_rollout_ref.model.use_remove_padding": True,
        "data.max_prompt_length": PROMPT,
        "data.max_response_length": case.longest - PROMPT,
        "data.train_batch_size": case.sequences * world,
        "trainer.n_gpus_per_node": world,
        "actor_rollout_ref.rollout.n": 1,
        "actor_rollout_ref.actor.ppo_mini_batch_size": case.sequences * world,
        "actor_rollout_ref.actor.use_dynamic_bsz": False,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": case.micro,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": case.micro,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": case.micro,
    }
    if case.teacher is not None:
        chosen |= {"+s2d.teacher.path": str(models / "teacher"), "+s2d.signal.type": "reverse_kl"}
    kind = "grpo" if case.teacher is None else "opd"
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", hydra_arguments(merge(overlay(kind), overlay("cpu"), chosen, case.verl)))
    OmegaConf.resolve(config)
    if case.teacher is not None:
        with open_dict(config):
            config.actor_rollout_ref.s2d = read_opd_config(config).written()
    return config


def _measure(config, case: Case) -> int:
    """Bytes: what the worker held before its second update, and the most that the update added."""
    if case.teacher is None:
        worker = ActorRolloutRefWorker(config.actor_rollout_ref, "actor")
    else:
        worker = StudentTeacherWorker(config.actor_rollout_ref, "actor")
        worker.role = "actor_ref"
    worker.init_model()
    worker.update_actor(_batch(case))
    batch = _batch(case)
    gc.collect()
    before = _held(worker.actor.engine)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        worker.update_actor(batch)
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return before + peak


def _held(engine) -> int:
    """Parameters and states of the optimizer, this rank's part."""
    tensors = [*engine.module.parameters()]
    tensors += [t for state in engine.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def write_shape(directory: Path, shape: ModelShape, words: int) -> None:
    """Write a checkpoint of random weights, with a tokenizer of so many words."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(directory)
    write_tokenizer(directory, [*WORDS[:5], *map(str, range(words - 5))])


def _batch(case: Case) -> TensorDict:
    """As verl's V1 trainer sends it to an update."""
    torch.manual_seed(0)
    count, words = case.sequences, case.student.vocabulary
    prompts = [torch.randint(5, words, (PROMPT,)) for _ in range(count)]
    responses = [torch.randint(5, words, (case.longest - PROMPT,)) for _ in range(count)]
    masks = [torch.cat((torch.zeros(PROMPT), torch.ones(case.longest - PROMPT))).long() for _ in range(count)]
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "response_mask": [torch.ones_like(r) for r in responses],
        "input_ids": [torch.cat(pair) for pair in zip(prompts, responses, strict=True)],
        "position_ids": [torch.arange(case.longest) for _ in range(count)],
        "loss_mask": masks,
        **{name: [torch.randn(len(r)) for r in responses] for name in ("old_log_probs", "advantages")},
    }
    exact = case.teacher is not None
    world = torch.distributed.get_world_size()
    return tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(each, layout=torch.jagged) for name, each in tensors.items()},
        {
            "calculate_entropy": False,
            "distillation_use_topk": exact,
            "distillation_only": exact,
            "global_batch_size": count * world,
            "mini_batch_size": count * world,
            "epochs": 1,
            "seed": 0,
            "dataloader_kwargs": {"shuffle": False},
            "temperature": 1.0,
        },
    )


if __name__ == "__main__":
    # What Ray sets for a worker of verl; the process group is there already when it asks.
    os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": sys.argv[2], "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    work(cases)
