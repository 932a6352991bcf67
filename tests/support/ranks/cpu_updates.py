"""Updates of stages 1, 2b and 3 in verl's engine with the CPU overlay, and whether packing changes them.

python -m tests.support.ranks.cpu_updates RANK WORLD DIRECTORY
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from tests.support.ranks.group import work
from tests.support.tiny import WORDS, write_model
from verl_s2d.gpu_check.engine_step import fill_adapters, record_steps
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.opd.worker import StudentTeacherWorker
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

PACKS = "actor_rollout_ref.model.use_remove_padding"
_LORA = {
    "actor_rollout_ref.model.lora_rank": 4,
    "actor_rollout_ref.model.target_modules": "all-linear",
    "actor_rollout_ref.model.lora.merge": True,
}
_REVERSE = {"+s2d.signal.type": "reverse_kl"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo, entropy, temperature": (
        "grpo",
        {"actor_rollout_ref.actor.entropy_coeff": 0.1, "actor_rollout_ref.rollout.temperature": 0.7},
    ),
    "grpo, LoRA": ("grpo", _LORA),
    "opd": ("opd", _REVERSE),
    "opd, jsd, from logits": ("opd", {"+s2d.signal.type": "jsd", "+s2d.materialise_logits": True}),
    "opd, some tokens": ("opd", _REVERSE | {"+s2d.signal.keep_tokens": 0.5}),
    "opd, LoRA": ("opd", _REVERSE | _LORA),
}


@dataclass(frozen=True)
class Sizes:
    """Sequences of a batch; tokens are the most that a prompt or response has, half of which it has at least."""

    sequences: int = 8
    prompt: int = 6
    response: int = 8


def configuration(kind: str, models: Path, sizes: Sizes, overrides: Mapping[str, Any]) -> DictConfig:
    """verl's for a stage of that kind: one update of one micro-batch."""
    chosen = {
        "actor_rollout_ref.model.path": str(models / "student"),
        "data.max_prompt_length": sizes.prompt,
        "data.max_response_length": sizes.response,
        "trainer.n_gpus_per_node": 1,
        "actor_rollout_ref.rollout.n": 1,
        "actor_rollout_ref.actor.optim.lr": 1.0e-4,
        "actor_rollout_ref.actor.use_dynamic_bsz": False,
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": False,
        "actor_rollout_ref.actor.ppo_mini_batch_size": sizes.sequences,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": sizes.sequences,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": sizes.sequences,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": sizes.sequences,
    }
    if kind == "opd":
        chosen |= {"+s2d.teacher.path": str(models / "teacher")}
    with initialize_config_module("verl.trainer.config", version_base=None):
        settings = merge(overlay(kind), overlay("cpu"), chosen, overrides)
        config = compose("ppo_trainer", hydra_arguments(settings))
    OmegaConf.resolve(config)
    if kind == "opd":
        with open_dict(config):
            config.actor_rollout_ref.s2d = read_opd_config(config).written()
    return config


def worker(kind: str, config: DictConfig) -> ActorRolloutRefWorker:
    """One that trains, without a rollout engine."""
    made = (StudentTeacherWorker if kind == "opd" else ActorRolloutRefWorker)(config.actor_rollout_ref, "actor")
    if kind == "opd":
        made.role = "actor_ref"
    made.init_model()
    return made


def batch(kind: str, sizes: Sizes, words: int, temperature: float = 1.0) -> TensorDict:
    """The same random sequences at every call, as verl's V1 trainer sends them to an update (`grpo`, `opd`) or to the
    pass before it (`log-probs`)."""
    generator = torch.Generator().manual_seed(0)

    def sequences(longest: int) -> list[torch.Tensor]:
        lengths = torch.randint(max(1, longest // 2), longest + 1, (sizes.sequences,), generator=generator)
        return [torch.randint(3, words, (length,), generator=generator) for length in lengths.tolist()]

    prompts, responses = sequences(sizes.prompt), sequences(sizes.response)
    masks = [(torch.zeros_like(p), torch.ones_like(r)) for p, r in zip(prompts, responses, strict=True)]
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "response_mask": [response for _, response in masks],
        "input_ids": whole,
        "position_ids": [torch.arange(len(ids)) for ids in whole],
        "loss_mask": [torch.cat(pair) for pair in masks],
        "old_log_probs": [torch.full((len(r),), -4.0) for r in responses],
        "advantages": [torch.randn(len(r), generator=generator) for r in responses],
    }
    exact = kind == "opd"
    return tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(each, layout=torch.jagged) for name, each in tensors.items()},
        {
            "calculate_entropy": kind == "log-probs",
            "distillation_use_topk": exact,
            "distillation_only": exact,
            "global_batch_size": sizes.sequences,
            "mini_batch_size": sizes.sequences,
            "epochs": 1,
            "seed": 0,
            "dataloader_kwargs": {"shuffle": False},
            "temperature": temperature,
        },
    )


def cases(world: int):
    return {name: lambda rank, world, name=name: _equal(name) for name in CASES}


def _equal(name: str) -> None:
    """Loss and gradient of the overlay's update are those of one with packed sequences."""
    models = Path(sys.argv[3])
    for role, shape in (("student", {}), ("teacher", {"seed": 1, "layers": 3, "hidden": 64})):
        if not (models / role).exists():
            write_model(models / role, **shape)
    kind, overrides = CASES[name]
    losses, gradients = zip(*(_update(kind, models, overrides | packs) for packs in ({}, {PACKS: True})), strict=True)
    assert abs(losses[0] / losses[1] - 1) < 1e-5, losses
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    difference = sum((gradients[0][n] - gradients[1][n]).square().sum() for n in gradients[0]).sqrt()
    size = sum(gradient.square().sum() for gradient in gradients[1].values()).sqrt()
    assert size > 0 and difference / size < 1e-5, (difference, size)


def _update(kind: str, models: Path, overrides: Mapping[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    sizes = Sizes()
    config = configuration(kind, models, sizes, overrides)
    torch.manual_seed(0)  # LoRA's first factors
    made = worker(kind, config)
    fill_adapters(made.actor.engine.module)
    given = batch(kind, sizes, len(WORDS), config.actor_rollout_ref.rollout.temperature)
    step, packs = record_steps(made.actor), []
    forward = made.actor.engine.forward_step

    def seen(micro_batch, *arguments, **named):
        packs.append(tu.get_non_tensor_data(micro_batch, key="use_remove_padding", default=None))
        return forward(micro_batch, *arguments, **named)

    made.actor.engine.forward_step = seen
    metrics = tu.get(made.update_actor(given), "metrics")
    assert config.actor_rollout_ref.model.use_remove_padding == (PACKS in overrides)
    # One micro-batch; TIP's ranges take a pass of their own.
    passes = 2 if "+s2d.signal.keep_tokens" in overrides else 1
    assert packs == passes * [PACKS in overrides], packs
    return float(metrics["loss"][-1]), step.gradients


if __name__ == "__main__":
    # What Ray sets for a worker of verl; the process group is there already when it asks.
    os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": sys.argv[2], "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    work(cases)
