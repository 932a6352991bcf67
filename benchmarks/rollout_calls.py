"""Measure where a GRPO step's processor time goes, with verl's agent loops and with ours, which work by prompt.

    python -m benchmarks.rollout_calls [steps=8] [rounds=1]

Runs stage 3 of the quickstart on its student, for each manager of agent loops in turn, and sums the processor seconds
of every process of the run between the end of step 2 and that of the last step. Prints seconds a step by kind of
process, and wall seconds a step.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from verl_s2d import arguments
from verl_s2d.sampling.in_verl.samples_groups import MANAGER_KEY

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"
MANAGERS = {"verl": "verl.trainer.ppo.v1.AgentLoopManagerTQ", "ours": None}
MARK = "S2D_BENCHMARK"
STEP = re.compile(r"step (\d+)/")
KINDS = {
    "AgentLoopWorker": "agent loop",
    "GroupWorker": "agent loop",
    "vLLMHttpServer": "server",
    "GroupServer": "server",
    "RewardLoop": "reward worker",
    "WorkerDict": "training worker",
    "Storage": "queue",
    "TransferQueue": "queue",
    "LoadBalancer": "balancer",
    "TaskRunner": "trainer",
    "verifiers": "verifier",
}
OTHER = "engine, Ray and the rest"


@dataclass(frozen=True)
class Options:
    """Steps of a run, and how often each manager has its turn."""

    steps: int = 8
    rounds: int = 1


def kind(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return next((name for part, name in KINDS.items() if part in command), OTHER)


def processor_seconds(mark: str) -> dict[int, tuple[str, float]]:
    """Return pid -> (kind, processor seconds) of the processes of a run."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                spent = process.cpu_times()
                found[process.pid] = kind(process), spent.user + spent.system
        except (psutil.Error, OSError):
            continue
    return found


def run(recipe: Path, runs: Path, mark: str, steps: int) -> tuple[dict[str, float], float]:
    """Run the recipe; return processor seconds a step by kind of process, and wall seconds a step."""
    command = [sys.executable, "-u", "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(runs)]
    seen: dict[int, tuple[float, dict[int, tuple[str, float]]]] = {}
    with subprocess.Popen(command, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "-rl-" in line and (step := STEP.search(line)):
                seen[int(step[1])] = time.monotonic(), processor_seconds(mark)
    if process.returncode or len(seen) < 2:
        sys.exit(f"{recipe}: exit code {process.returncode}, progress of steps {sorted(seen)}")
    first, last = min(seen), max(seen)
    (began, before), (ended, after) = seen[first], seen[last]
    spent: dict[str, float] = defaultdict(float)
    for pid, (name, seconds) in after.items():
        spent[name] += (seconds - before.get(pid, (name, 0.0))[1]) / (last - first)
    return spent, (ended - began) / (last - first)


def main(options: Options) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MANAGERS}
    with tempfile.TemporaryDirectory(prefix="s2d-rollout-calls-") as scratch:
        for number in range(options.rounds):
            for name in list(MANAGERS)[:: -1 if number % 2 else 1]:
                folder = Path(scratch) / name
                shutil.copytree(QUICKSTART, folder, dirs_exist_ok=True)
                recipe = OmegaConf.load(folder / "quickstart.yaml")
                recipe.rows = ["direct-grpo"]
                recipe.stages.student_rl.steps = options.steps + number
                if MANAGERS[name] is not None:
                    recipe.stages.student_rl.verl[f"+{MANAGER_KEY}"] = MANAGERS[name]
                OmegaConf.save(recipe, folder / "quickstart.yaml")
                spent, wall = run(folder / "quickstart.yaml", Path(scratch) / "runs", f"{name}-{number}", options.steps)
                found[name].append({**spent, "all processes": sum(spent.values()), "wall": wall})
    kinds = sorted({name for rounds in found.values() for spent in rounds for name in spent})
    print(f"| seconds a step | {' | '.join(MANAGERS)} | ratio |")
    print("|---|---|---|---|")
    for name in [name for name in kinds if name not in ("all processes", "wall")] + ["all processes", "wall"]:
        theirs, ours = (statistics.median(spent.get(name, 0.0) for spent in found[who]) for who in MANAGERS)
        print(f"| {name} | {theirs:.2f} | {ours:.2f} | {f'{ours / theirs:.2f}' if theirs else ''} |")


if __name__ == "__main__":
    print("python -m benchmarks.rollout_calls", *sys.argv[1:], flush=True)
    arguments.run(main, Options)
