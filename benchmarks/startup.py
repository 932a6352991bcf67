"""Measure an OPD stage's start-up, from the command to verl's "ready to fit": stock settings and the workflow's.

    python -m benchmarks.startup [pairs=2]

Stock: a cold interpreter, a Ray of its own, verl's default process counts wherever this project changes them for
speed. Workflow: forks of the warm host on the Ray head that a run keeps across its stages, and the `cpu` overlay. Both
train the same tiny checkpoints; pairs alternate within one run, and each process is killed once it is ready. What the
workflow starts once a run (the host, the head) is timed beside them.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.support.tiny import write_model, write_problems
from tests.support.tiny_verl import verl_command
from verl_s2d.logs import last_lines
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.workflow.hosts.local_cluster import CLUSTER_MARKER, RayCluster
from verl_s2d.workflow.hosts.process import MARKER, Launcher, SubprocessLauncher, kill_marked
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand
from verl_s2d.workflow.hosts.warm_launcher import WarmLauncher

_READY = b"ready to fit"
_LIMIT_SECONDS = 400
_STOCK = {
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 8,
    "data.dataloader_num_workers": 8,
    # What a machine with fewer cores than verl asks for needs, to start at all.
    "ray_kwargs.ray_init.num_cpus": 32,
    "+ray_kwargs.ray_init.num_gpus": 1,
}
_COLUMNS = "| stock (s) | workflow (s) | ratio | once a run: warm host, Ray head (s) | pairs |"


def main(pairs: int) -> None:
    """Measure and print; the last lines are a row for RESULTS.md."""
    with tempfile.TemporaryDirectory(prefix="s2d-startup-") as scratch:
        stock, workflow, once = _measure(Path(scratch), pairs)
    medians = statistics.median(stock), statistics.median(workflow)
    print(f"stock    {[round(s, 1) for s in stock]}  median {medians[0]:.1f} s")
    print(f"workflow {[round(s, 1) for s in workflow]}  median {medians[1]:.1f} s")
    print(f"\npython -m benchmarks.startup pairs={pairs}   ({os.cpu_count()} cores, load {os.getloadavg()[1]:.1f})")
    row = [f"{medians[0]:.1f}", f"{medians[1]:.1f}", f"{medians[1] / medians[0]:.2f}"]
    row += [f"{once[0]:.1f}, {once[1]:.1f}", str(pairs)]
    print(f"{_COLUMNS}\n{'|---' * len(row)}|\n| {' | '.join(row)} |")


def _measure(scratch: Path, pairs: int) -> tuple[list[float], list[float], tuple[float, float]]:
    """Seconds of each stock start, of each workflow start, and of what the workflow starts once."""
    student = write_model(scratch / "student", seed=1)
    teacher = write_model(scratch / "teacher", seed=2, hidden=64)
    data = write_problems(scratch / "train.parquet", 32)
    run_id = uuid.uuid4().hex
    environment = stage_environment("cpu") | {MARKER: run_id}
    environment.pop("RAY_ADDRESS", None)
    plain = SubprocessLauncher()
    warm = WarmLauncher(environment | {CLUSTER_MARKER: run_id}, scratch / "warm.log")
    cluster = RayCluster(scratch, run_id, warm, environment, "cpu", Demand(1, 1, RL_CPUS_PER_WORKER, 8))

    def start_up(launcher: Launcher, name: str, more: dict, joined: dict[str, str], marker: str) -> float:
        out = scratch / name
        out.mkdir()
        overrides = {"+s2d.teacher.path": str(teacher), **more}
        command = verl_command("opd", student=student, data=data, out=out, steps=2, overrides=overrides)
        began = time.monotonic()
        handle = launcher.start(command, environment | joined | {"S2D_STARTUP": marker}, out, out / "log.txt")
        while _READY not in (out / "log.txt").read_bytes():
            if handle.poll() is not None or time.monotonic() - began > _LIMIT_SECONDS:
                raise SystemExit("\n".join([f"{name} did not get ready:", *last_lines(out / "log.txt", 30)]))
            time.sleep(0.05)
        seconds = time.monotonic() - began
        print(f"{name}: {seconds:.1f} s", flush=True)
        handle.kill()
        return seconds

    try:
        began = time.monotonic()
        warm.start([sys.executable, "-c", "pass"], environment, scratch, scratch / "first.txt")
        host = time.monotonic() - began
        began = time.monotonic()
        joined = cluster.environment()
        head = time.monotonic() - began
        stock, workflow = [], []
        for pair in range(1, pairs + 1):
            marker = uuid.uuid4().hex
            stock.append(start_up(plain, f"stock-{pair}", _STOCK, {}, marker))
            kill_marked(marker, "S2D_STARTUP")
            workflow.append(start_up(warm, f"workflow-{pair}", {}, joined, marker))
            cluster.settle()
        return stock, workflow, (host, head)
    finally:
        cluster.stop()
        warm.close()
        kill_marked(run_id)


if __name__ == "__main__":
    main(int(sys.argv[1].removeprefix("pairs=")) if sys.argv[1:] else 2)
