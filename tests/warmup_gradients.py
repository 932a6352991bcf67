"""One rank of a warmup step, run as a process of its own: writes the step's gradients and metrics to a file.

python -m tests.warmup_gradients STUDENT TEACHER CACHE OUT [key=value overrides ...]    (RANK, WORLD_SIZE etc. set)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import yaml
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torch.distributed.tensor import distribute_tensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.dataset_utils import SFTTensorCollator
from verl.workers.engine_workers import TrainingWorkerConfig

import verl_s2d.config
from tests import flash_on_cpu
from verl_s2d.objectives import differentiable
from verl_s2d.training.warmup_checks import check_cache, warmup_objective
from verl_s2d.training.warmup_data import CachedRollouts
from verl_s2d.training.warmup_worker import WarmupWorker


def main(student: str, teacher: str, cache: str, out: str, *overrides: str) -> None:
    flash_on_cpu.register()
    overlay = yaml.safe_load(Path(verl_s2d.config.__path__[0], "warmup-cpu.yaml").read_text())
    with initialize_config_module("verl_s2d.config", version_base=None):
        config = compose(
            "s2d_warmup",
            [
                *(f"{k}={v}" for k, v in overlay.items()),
                f"model.path={student}",
                f"s2d.teacher.path={teacher}",
                f"data.train_files={cache}",
                "data.train_batch_size=8",
                "data.use_dynamic_bsz=false",
                "optim.clip_grad=1e9",
                "optim.lr=1e-3",
                "trainer.logger=[]",
                "s2d.chunk_tokens=3",
                *overrides,
            ],
        )
    model, rollouts = omega_conf_to_dataclass(config.model), CachedRollouts(cache)
    worker = WarmupWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=omega_conf_to_dataclass(config.engine),
            optimizer_config=omega_conf_to_dataclass(config.optim),
            checkpoint_config=omega_conf_to_dataclass(config.checkpoint),
            profiler_config=None,
        ),
        teacher_path=teacher,
        trust_remote_code=False,
        objective=warmup_objective(config, check_cache(config, model, rollouts)),
        skip_limit=config.s2d.skip_limit,
    )
    worker.reset()
    fill_adapters(worker.engine.module)
    wanted = recorded_wants()
    gradients: dict[str, torch.Tensor] = {}
    adapters: dict[str, torch.Tensor] = {}
    widths: set[int] = set()
    for engine in (worker.engine, worker.teacher.engine):
        engine.module.get_output_embeddings().register_forward_hook(lambda *call: widths.add(call[-1].shape[-1]))
    step, updated = worker.engine.optimizer_step, []

    def recorded_step():
        parameters = dict(worker.engine.module.named_parameters())
        before = {name: whole(parameter) for name, parameter in parameters.items()}
        gradients.update(
            (n, whole(parameter.grad)) for n, parameter in parameters.items() if parameter.grad is not None
        )
        adapters.update((name, value) for name, value in before.items() if ".lora_" in name)
        norm = step()
        updated.extend(n for n, old in before.items() if not torch.allclose(whole(parameters[n]), old, equal_nan=True))
        return norm

    worker.engine.optimizer_step = recorded_step
    rank = int(os.environ["RANK"])
    dp = worker.engine.get_data_parallel_size()
    mine = range(8)[worker.engine.get_data_parallel_rank() * (8 // dp) :][: 8 // dp]
    batch = SFTTensorCollator("no_padding")([rollouts[i] for i in mine])
    data: TensorDict = tu.get_tensordict(
        batch,
        {
            "use_remove_padding": config.model.use_remove_padding,
            "use_dynamic_bsz": config.data.use_dynamic_bsz,
            "max_token_len_per_gpu": config.data.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": config.data.micro_batch_size_per_gpu,
            "temperature": 1.0,
            "global_batch_size": 8,
            "pad_mode": "no_padding",
            "pad_token_id": 0,
        },
    )
    output = worker.train_batch(data)
    if rank == 0:
        metrics = dict(tu.get(output, "metrics"))
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        recorded = {"gradients": gradients, "metrics": metrics, "widths": widths, "updated": updated}
        torch.save(recorded | {"compiled": compiled, "adapters": adapters, "wanted": wanted}, out)


def fill_adapters(module: torch.nn.Module) -> None:
    """Give LoRA's second factors, which start at zero and would hide the first ones' gradient, values of their own."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if ".lora_B." in name:
            full = 0.1 * torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements))


def recorded_wants() -> set[tuple[bool, bool, bool]]:
    """Which gradients the divergence makes from here on: of hidden states, head and bias."""
    wanted: set[tuple[bool, bool, bool]] = set()
    original = differentiable.linear_gradients

    def recording(*arguments, wants, **options):
        wanted.add(tuple(wants))
        return original(*arguments, wants=wants, **options)

    differentiable.linear_gradients = recording
    return wanted


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, put together when it is sharded."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


if __name__ == "__main__":
    main(*sys.argv[1:])
