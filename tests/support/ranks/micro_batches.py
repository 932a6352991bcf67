"""Gradients of one update in verl's FSDP2 workers, its batch cut by sequences and by tokens.

python -m tests.support.ranks.micro_batches RANK WORLD DIRECTORY
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from tests.support.ranks.group import work
from tests.support.ranks.memory import PROMPT, Case, compose_case, write_shape
from tests.support.tiny import WORDS
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.stages.opd.worker import StudentTeacherWorker

SEQUENCES = 4
"""Sequences of each rank."""
LONGEST = 32
CUTS = {
    "two sequences": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 2},
    "one sequence": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 1},
    "by few tokens": {"use_dynamic_bsz": True, "max_token_len_per_gpu": LONGEST},
    "by many tokens": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 16_384},
}
_STUDENT = ModelShape(64, 128, 2, 4, 2, 16, len(WORDS), False, qk_norm=True)
_TEACHER = ModelShape(96, 192, 3, 4, 2, 16, len(WORDS), False, qk_norm=True)
_KL = {
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.kl_loss_coef": 0.1,
    "actor_rollout_ref.actor.entropy_coeff": 0.01,
}
_SEQUENCES = {"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean"}
_PADDED = {"actor_rollout_ref.model.use_remove_padding": False}
_LORA = {"actor_rollout_ref.model.lora_rank": 4, "actor_rollout_ref.model.lora.merge": True}
CASES = {
    "GRPO with KL and entropy": (None, _KL),
    "GRPO by sequences": (None, _KL | _SEQUENCES),
    "OPD": (_TEACHER, {}),
    "OPD, padded": (_TEACHER, _PADDED),
    "OPD with adapters": (_TEACHER, _LORA),
}


def cases(world: int):
    return {name: partial(_check, name, *case) for name, case in CASES.items()}


def _check(name: str, teacher: ModelShape | None, verl: dict[str, object], rank: int, world: int) -> None:
    """Every way to cut the batch gives the same gradient and the same loss."""
    directory = Path(sys.argv[3]) / name
    if rank == 0:
        for role, shape in (("student", _STUDENT), ("teacher", teacher)):
            if shape is not None:
                write_shape(directory / role, shape, len(WORDS))
    torch.distributed.barrier()
    case = Case(_STUDENT, teacher, longest=LONGEST, sequences=SEQUENCES, micro=2, verl=verl)
    config = compose_case(directory, case, world)
    worker = (StudentTeacherWorker if teacher else ActorRolloutRefWorker)(config.actor_rollout_ref, "actor")
    if teacher is not None:
        worker.role = "actor_ref"
    worker.init_model()
    updates = {cut: _update(worker, settings, rank, world, teacher is not None) for cut, settings in CUTS.items()}
    passes = {cut: count for cut, (_, count) in updates.items()}
    assert passes["one sequence"] == SEQUENCES and passes["two sequences"] == 2, passes
    assert passes["by many tokens"] == 1 and 1 < passes["by few tokens"] <= SEQUENCES, passes
    expected, _ = updates["two sequences"]
    norm = sum(gradient.square().sum() for gradient in expected.values()).sqrt()
    assert norm > 0
    for cut, (found, _) in updates.items():
        assert found.keys() == expected.keys()
        difference = sum((found[key] - gradient).square().sum() for key, gradient in expected.items()).sqrt()
        assert difference < 1e-5 * norm, (cut, float(difference / norm))


def _update(worker, settings: dict, rank: int, world: int, exact: bool) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients, micro-batches) of one update, which does not change the weights."""
    engine, gradients, passes = worker.actor.engine, {}, []
    for key, value in settings.items():
        setattr(worker.actor.engine_config, key, value)
    step, forward = engine.optimizer_step, engine.forward_step

    def recorded_step() -> float:
        for name, parameter in engine.module.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.full_tensor().clone()
        return 1.0

    def counted(*arguments, **options):
        passes.append(1)
        return forward(*arguments, **options)

    engine.optimizer_step, engine.forward_step = recorded_step, counted
    try:
        worker.update_actor(_batch(rank, world, exact))
    finally:
        engine.optimizer_step, engine.forward_step = step, forward
    return gradients, len(passes)


def _batch(rank: int, world: int, exact: bool) -> TensorDict:
    """This rank's rollouts, of different lengths, as verl's V1 trainer sends them to an update."""
    generator = torch.Generator().manual_seed(rank)

    def random(length: int) -> torch.Tensor:
        return torch.randn(length, generator=generator)

    lengths = [(5 * i + 7 * rank) % (LONGEST - PROMPT) + 1 for i in range(SEQUENCES)]
    prompts = [torch.randint(5, len(WORDS), (PROMPT,), generator=generator) for _ in lengths]
    responses = [torch.randint(5, len(WORDS), (length,), generator=generator) for length in lengths]
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "response_mask": [torch.ones_like(r) for r in responses],
        "input_ids": [torch.cat(pair) for pair in zip(prompts, responses, strict=True)],
        "position_ids": [torch.arange(PROMPT + length) for length in lengths],
        "loss_mask": [torch.cat((torch.zeros(PROMPT), torch.ones(length))).long() for length in lengths],
        "old_log_probs": [random(length) - 3 for length in lengths],
        "ref_log_prob": [random(length) - 3 for length in lengths],
        "advantages": [random(length) for length in lengths],
    }
    settings = {
        "calculate_entropy": not exact,
        "distillation_use_topk": exact,
        "distillation_only": exact,
        "global_batch_size": SEQUENCES * world,
        "mini_batch_size": SEQUENCES * world,
        "epochs": 1,
        "seed": 0,
        "dataloader_kwargs": {"shuffle": False},
        "temperature": 1.0,
    }
    nested = {name: torch.nested.as_nested_tensor(each, layout=torch.jagged) for name, each in tensors.items()}
    return tu.get_tensordict(nested, settings)


if __name__ == "__main__":
    # What Ray sets for a worker of verl; the process group is there already when it asks.
    os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": sys.argv[2], "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    work(cases)
