"""kill -9 in the middle of every stage, then the same command again: it finishes and repeats nothing that was done.

Three kills by default. `S2D_KILLS=all` does every stage and victim in one run directory and prints the table that
tests/RESULTS.md holds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verl_s2d.workflow.alarms import watched
from verl_s2d.workflow.metrics import read_metrics

pytestmark = pytest.mark.e2e

RECIPE = Path(__file__).parent / "minimal" / "recipe.yaml"
VICTIMS = {
    "driver": re.compile(r"-m (verl\.trainer\.main_ppo|verl_s2d\.training\.(warmup|rollout_cache)) "),
    "worker": re.compile(r"^ray::(WorkerDict|WarmupWorker)"),
    "vllm server": re.compile(r"^ray::vLLMHttpServer"),
}
ALL = [
    ("teacher-rl-1h", "driver"),
    ("teacher-rl-1h", "worker"),
    ("teacher-rl-1h", "vllm server"),
    ("rollouts-1h", "driver"),
    ("warmup-1h", "driver"),
    ("warmup-1h", "worker"),
    ("opd-1h", "driver"),
    ("opd-1h", "worker"),
    ("opd-1h", "vllm server"),
    ("student-rl-2h", "driver"),
    ("student-rl-2h", "worker"),
    ("student-rl-2h", "vllm server"),
]
FEW = [("teacher-rl-1h", "driver"), ("warmup-1h", "worker"), ("opd-1h", "vllm server")]


def command(run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "verl_s2d.cli", "run", str(RECIPE), "--run-dir", str(run_dir)]


def start(run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(command(run_dir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stage_directory(run: subprocess.Popen, stage: str) -> str:
    """Read the command's output up to the start of a stage; its directory's name."""
    seen = []
    for line in run.stdout:
        seen.append(line)
        if found := re.search(rf"\] {re.escape(stage)} \(([\w-]+)", line):
            return found.group(1)
    raise AssertionError(f"{stage} never started:\n{''.join(seen)}")


def wait_for_work(directory: Path, limit: float = 240) -> None:
    """Until the stage has done something that a restart could lose: a step in its metrics, or a loaded engine."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if any(path.stat().st_size for path in directory.glob("metrics/*.jsonl")):
            return
        log = directory / "log.txt"
        if directory.name.startswith("rollouts") and log.exists() and "rollouts: " in log.read_text(errors="replace"):
            return
        time.sleep(0.02)
    raise AssertionError(f"{directory} did nothing in {limit} s")


def kill_one(run: subprocess.Popen, victim: str, limit: float = 30) -> bool:
    """SIGKILL the victim among the run's processes; False when the run ended before one was seen."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and run.poll() is None:
        for process in psutil.Process(run.pid).children(recursive=True):
            try:
                if VICTIMS[victim].search(" ".join(process.cmdline()) + " "):
                    process.kill()
                    return True
            except psutil.Error:
                continue
        time.sleep(0.02)
    return False


def manifests(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Stage directory -> what would change if its manifest were written again."""
    return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in run_dir.glob("stages/*/manifest.json")}


@pytest.mark.timeout(3600)
def test_the_same_command_finishes_after_every_kill(tmp_path):
    run_dir, table = tmp_path / "run", []
    for stage, victim in ALL if os.environ.get("S2D_KILLS") == "all" else FEW:
        before, began = manifests(run_dir), time.monotonic()
        run = start(run_dir)
        try:
            name = stage_directory(run, stage)
            wait_for_work(run_dir / "stages" / name)
            assert kill_one(run, victim), f"{stage} ended before its {victim} was found"
            killed_at = time.monotonic()
            output = run.communicate(timeout=400)[0]
        finally:
            run.kill()
        noticed = time.monotonic() - killed_at
        kept = manifests(run_dir)
        assert {d: kept.get(d) for d in before} == before, "a finished stage was built again"
        finished = (run_dir / "stages" / name / "manifest.json").exists()
        assert run.returncode in ((0, 1) if finished else (1,)), output[-3000:]
        table.append((stage, victim, run.returncode, round(noticed), round(time.monotonic() - began)))
        print(*table[-1], flush=True)
    before = manifests(run_dir)
    last = subprocess.run(command(run_dir), capture_output=True, text=True, timeout=600)
    assert last.returncode == 0, last.stdout[-3000:] + last.stderr[-3000:]
    after = manifests(run_dir)
    assert {d: after[d] for d in before} == before
    check_ledger(run_dir)
    check_that_alarms_have_their_metrics(run_dir)
    print("stage | killed | exit code | noticed after s | seconds")
    for row in table:
        print(*row, sep=" | ")


def check_that_alarms_have_their_metrics(run_dir: Path) -> None:
    """A metric that verl calls otherwise would silence an alarm."""
    for kind in ("grpo", "warmup", "opd"):
        for directory in run_dir.glob(f"stages/{kind}-*"):
            # The divergence to a reference policy is logged where one is asked for.
            missing = watched(kind) - {"actor/kl_loss"} - max(read_metrics(directory).items())[1].keys()
            assert not missing, f"{kind}: {missing}"


def check_ledger(run_dir: Path) -> None:
    """2a and 2b read no answer; no label is in two slices; every label of a slice counts once however often read."""
    ledgers = {}
    for path in run_dir.glob("stages/*/manifest.json"):
        manifest = json.loads(path.read_text())
        ledgers.setdefault(manifest["kind"], []).append(manifest["ledger"])
    for kind in ("rollouts", "warmup", "opd"):
        for ledger in ledgers[kind]:
            assert ledger["labels_read"] == [] and ledger["verifier_calls"] == 0
    first, second = (set(ledger["labels_read"]) for ledger in ledgers["grpo"])
    assert first and second and not first & second
    assert sum(len(ledger["labels_read"]) for ledger in ledgers["grpo"]) == len(first | second)
