"""Measure the CPU time of one update of the quickstart's size in verl's engine, under settings of the CPU overlay.

    python -m benchmarks.cpu_update [rounds=9] [sequences=256] [prompt=8] [response=8]

Each variant is a worker of its own with equal weights, given equal batches; rounds in alternating order. `opd` is stage
2b's update with reverse KL, `grpo` that of stages 1 and 3, `log-probs` the pass before it. Prints the median of each,
its ratio to the first variant, and loss and gradient norm of the first update.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from verl.utils import tensordict_utils as tu

from benchmarks.on_cpu import restart_on_cpu
from tests.support.ranks.cpu_updates import PACKS, Sizes, batch, configuration, worker
from verl_s2d import arguments

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"
RECOMPUTES = "actor_rollout_ref.model.enable_gradient_checkpointing"
OBJECTIVE = {"+s2d.signal.type": "reverse_kl"}
VARIANTS = {
    "packed, recomputing": {PACKS: True, RECOMPUTES: True},
    "padded, recomputing": {PACKS: False, RECOMPUTES: True},
    "packed": {PACKS: True, RECOMPUTES: False},
    "padded": {PACKS: False, RECOMPUTES: False},
}


@dataclass(frozen=True)
class Options(Sizes):
    """The quickstart's sizes, and rounds."""

    rounds: int = 9
    sequences: int = 256
    prompt: int = 8


WORDS = 64


def measure(options: Options, models: Path) -> None:
    workers = {
        (kind, name): worker(
            kind, configuration(kind, models, options, overrides | (OBJECTIVE if kind == "opd" else {}))
        )
        for kind in ("opd", "grpo")
        for name, overrides in VARIANTS.items()
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    first: dict[tuple[str, str], str] = {}
    calls = [*workers, *(("log-probs", name) for name in VARIANTS)]
    for number in range(options.rounds + 1):
        for kind, name in calls[:: -1 if number % 2 else 1]:
            given = batch(kind, options, WORDS)
            used = workers["grpo" if kind == "log-probs" else kind, name]
            gc.collect()
            began = time.process_time()
            output = used.compute_log_prob(given) if kind == "log-probs" else used.update_actor(given)
            spent = time.process_time() - began
            if number:  # the first round warms up
                seconds.setdefault((kind, name), []).append(spent)
            elif kind != "log-probs":
                metrics = tu.get(output, "metrics")
                first[kind, name] = ", ".join(f"{key} {float(metrics[key][-1]):.7g}" for key in ("loss", "grad_norm"))
    print("| pass | variant | processor seconds | ratio | first update |")
    print("|---|---|---|---|---|")
    for kind in ("opd", "grpo", "log-probs"):
        base = statistics.median(seconds[kind, next(iter(VARIANTS))])
        for name in VARIANTS:
            median = statistics.median(seconds[kind, name])
            print(f"| {kind} | {name} | {median:.3f} | {median / base:.2f} | {first.get((kind, name), '')} |")


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for role in ("student", "teacher"):
            command = [sys.executable, str(QUICKSTART / "pretrain.py"), "--out", f"{directory}/{role}"]
            subprocess.run([*command, f"role={role}", "steps=1"], check=True, stdout=subprocess.DEVNULL)
        measure(options, Path(directory))


if __name__ == "__main__":
    restart_on_cpu("benchmarks.cpu_update")
    arguments.run(main, Options)
