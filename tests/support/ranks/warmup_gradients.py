"""One rank of a warmup step, run as a process of its own: writes the step's gradients and metrics to a file.

python -m tests.support.ranks.warmup_gradients STUDENT TEACHER CACHE OUT [key=value ...]    (RANK, WORLD_SIZE etc. set)
"""

from __future__ import annotations

import os
import sys

import torch
from verl.utils import tensordict_utils as tu

from tests.support.ranks import flash_on_cpu
from verl_s2d.gpu_check.engine_step import batch_of, fill_adapters, record_steps, step_configuration, warmup_worker
from verl_s2d.objectives import differentiable
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.warmup.config_checks import read_warmup_settings
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts
from verl_s2d.stages.warmup.stored_top_k import RolloutsWithLikelyTokens


def main(student: str, teacher: str, cache: str, out: str, *overrides: str) -> None:
    flash_on_cpu.register()
    settings = ["s2d.chunk_tokens=3", *overrides]
    config = step_configuration(student, teacher, cache, on_cpu=True, overrides=settings)
    signal = read_warmup_settings(config.s2d).signal
    rollouts = RolloutsWithLikelyTokens(cache, signal.k) if isinstance(signal, TopK) else CachedRollouts(cache)
    worker = warmup_worker(config, rollouts)
    fill_adapters(worker.engine.module)
    wanted = recorded_wants()
    widths: set[int] = set()
    for engine in (worker.engine, *(frozen.engine for frozen in worker.frozen.values())):
        engine.module.get_output_embeddings().register_forward_hook(lambda *call: widths.add(call[-1].shape[-1]))
    step = record_steps(worker)
    rank = int(os.environ["RANK"])
    dp = worker.engine.get_data_parallel_size()
    mine = range(8)[worker.engine.get_data_parallel_rank() * (8 // dp) :][: 8 // dp]
    output = worker.train_batch(batch_of(config, rollouts, mine, total=8))
    if rank == 0:
        metrics = dict(tu.get(output, "metrics"))
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        recorded = {"gradients": step.gradients, "metrics": metrics, "widths": widths, "updated": step.updated}
        torch.save(recorded | {"compiled": compiled, "adapters": step.adapters, "wanted": wanted}, out)


def recorded_wants() -> set[tuple[bool, bool, bool]]:
    """Record which gradients the divergence makes from here on: of hidden states, head and bias."""
    wanted: set[tuple[bool, bool, bool]] = set()
    original = differentiable.linear_gradients

    def recording(*arguments, wants, **options):
        wanted.add(tuple(wants))
        return original(*arguments, wants=wants, **options)

    differentiable.linear_gradients = recording
    return wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
