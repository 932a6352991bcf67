"""Run one step of stage 2a or 2b in verl's engine without Ray, with the stage's own workers, and record it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict
from torch.distributed.tensor import distribute_tensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import TrainingWorkerConfig

from verl_s2d.signals.in_verl.aggregation import ResponseMean
from verl_s2d.stages.shared.distilled_worker import DistilledWorker
from verl_s2d.stages.warmup.config_checks import check_cache, read_warmup_settings
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts
from verl_s2d.stages.warmup.stored_top_k import TeacherCollator
from verl_s2d.stages.warmup.worker import WarmupWorker
from verl_s2d.teachers.frozen_engines import FrozenWorker, distinct, frozen_workers
from verl_s2d.verl_settings.overrides import overlay


def step_configuration(
    student: Path | str, teacher: Path | str, cache: Path | str, *, on_cpu: bool, overrides: Sequence[str] = ()
) -> DictConfig:
    """Compose the warmup's configuration for one step on all rollouts of a cache.

    Args:
        on_cpu: use the overlay for a machine without an accelerator.
        overrides: `key=value`, with the highest priority.
    """
    settings = {"engine.strategy": "fsdp2"}
    if on_cpu:
        settings = overlay("cpu", "warmup")
    with initialize_config_module("verl_s2d.stages.warmup", version_base=None):
        return compose(
            "s2d_warmup",
            [
                *(f"{k}={v}" for k, v in settings.items()),
                f"model.path={student}",
                f"s2d.teacher.path={teacher}",
                f"data.train_files={cache}",
                "data.train_batch_size=8",
                "data.use_dynamic_bsz=false",
                "optim.clip_grad=1e9",
                "optim.lr=1e-3",
                "trainer.logger=[]",
                *overrides,
            ],
        )


def warmup_worker(config: DictConfig, rollouts: CachedRollouts) -> WarmupWorker:
    """Build stage 2a's worker, ready for a step."""
    worker_config = _worker_config(config)
    worker = WarmupWorker(
        worker_config,
        settings=read_warmup_settings(config.s2d).written(),
        vocab_size=check_cache(config, worker_config.model_config, rollouts),
    )
    worker.reset()
    return worker


def opd_workers(
    config: DictConfig,
    vocab_size: int,
    *,
    loss_agg_mode: str = "token-mean",
    own_prompts: frozenset[str] = frozenset(),
) -> tuple[DistilledWorker, dict[str, FrozenWorker]]:
    """Build student and frozen models as StudentTeacherWorker joins them in stage 2b, without its rollout engine.

    Args:
        config: a warmup configuration whose `s2d` section is stage 2b's, with a full-vocabulary signal.
        own_prompts: roles whose models read other prompts than the student.
    """
    worker_config, settings = _worker_config(config), read_warmup_settings(config.s2d)
    frozen_config = dataclasses.replace(
        worker_config, engine_config=dataclasses.replace(worker_config.engine_config, forward_only=True)
    )
    student = DistilledWorker(worker_config, skip_limit=settings.skip_limit)
    frozen = frozen_workers(frozen_config, settings.models, own_prompts)
    for worker in (*distinct(frozen), student):
        worker.reset()
    student.learn_from(
        frozen,
        settings,
        vocab_size=vocab_size,
        aggregate=ResponseMean(loss_agg_mode),
        prefix="actor/",
        own_prompts=own_prompts,
    )
    return student, frozen


def _worker_config(config: DictConfig) -> TrainingWorkerConfig:
    return TrainingWorkerConfig(
        model_type="language_model",
        model_config=omega_conf_to_dataclass(config.model),
        engine_config=omega_conf_to_dataclass(config.engine),
        optimizer_config=omega_conf_to_dataclass(config.optim),
        checkpoint_config=omega_conf_to_dataclass(config.checkpoint),
        profiler_config=None,
    )


def batch_of(
    config: DictConfig, rollouts: CachedRollouts, indices: Sequence[int], *, total: int, temperature: float = 1.0
) -> TensorDict:
    """Collate these cached rollouts as a data-parallel rank's shard of a batch of `total`.

    The batch has the fields of both stages' losses: loss_mask for 2a; prompts, responses and response_mask for 2b.
    """
    rows = [rollouts[i] for i in indices]
    batch = TeacherCollator("no_padding")(rows)
    prompts, responses = [], []
    for row in rows:
        mask = row["loss_mask"].bool()
        prompts.append(row["input_ids"][~mask])
        responses.append(row["input_ids"][mask])
    batch["prompts"], batch["responses"] = _nested(prompts), _nested(responses)
    batch["response_mask"] = _nested([torch.ones_like(response) for response in responses])
    return tu.get_tensordict(
        batch,
        {
            "use_remove_padding": config.model.use_remove_padding,
            "use_dynamic_bsz": config.data.use_dynamic_bsz,
            "max_token_len_per_gpu": config.data.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": config.data.micro_batch_size_per_gpu,
            "temperature": temperature,
            "global_batch_size": total,
            "pad_mode": "no_padding",
            "pad_token_id": 0,
        },
    )


def _nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@dataclasses.dataclass
class StepRecord:
    """Record of a worker's optimizer steps, filled by `record_steps`.

    Attributes:
        gradients: parameter name -> gradient, before clipping.
        adapters: values of LoRA's parameters before the step.
        updated: names of the parameters that changed.
    """

    gradients: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    adapters: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    updated: list[str] = dataclasses.field(default_factory=list)


def record_steps(worker: WarmupWorker | DistilledWorker) -> StepRecord:
    """Make the worker's engine record every optimizer step from here on."""
    record, step = StepRecord(), worker.engine.optimizer_step

    def recorded_step():
        parameters = dict(worker.engine.module.named_parameters())
        before = {name: whole(parameter) for name, parameter in parameters.items()}
        record.gradients.update(
            (n, whole(parameter.grad)) for n, parameter in parameters.items() if parameter.grad is not None
        )
        record.adapters.update((name, value) for name, value in before.items() if ".lora_" in name)
        norm = step()
        changed = (n for n, old in before.items() if not torch.allclose(whole(parameters[n]), old, equal_nan=True))
        record.updated.extend(changed)
        return norm

    worker.engine.optimizer_step = recorded_step
    return record


def fill_adapters(module: torch.nn.Module) -> None:
    """Randomise LoRA's second factors: their initial zeros would make the first factors' gradient zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if ".lora_B." in name:
            full = (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.device, parameter.dtype)
            with torch.no_grad():
                sharded = hasattr(parameter, "device_mesh")
                parameter.copy_(
                    distribute_tensor(full, parameter.device_mesh, parameter.placements) if sharded else full
                )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor, gathered if it is sharded."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
