"""A disk that is full while something is written, or cannot be written at all: nothing half-written is ever used."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.workflow.faults import finish, manifests, nothing_half_written, running, write_recipe
from tests.support.workflow.runs import Lines
from tests.support.workflow.simulated_runs import FAILED, Executor, check_ledgers, check_what_is_there, plan_of
from verl_s2d import cli
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.runner import run_plan

BALLAST = "ballast"


class Disk:
    """A file system of its own in memory, small enough to fill."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self) -> None:
        descriptor = os.open(self.path / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        os.write(descriptor, b"\0" * size)
                except OSError:
                    continue
        finally:
            os.close(descriptor)

    def free(self) -> None:
        (self.path / BALLAST).unlink(missing_ok=True)

    def read_only(self, yes: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", self.path], check=True, timeout=30)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", path]
    try:
        mounted = subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True, timeout=30)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages in this process, on no cluster."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)
    monkeypatch.setattr("verl_s2d.workflow.runner.kill_marked", lambda run_id: 0)


def attempt(plan: Plan, truth: Path, disk: Disk, full_at: int | None) -> tuple[int, str]:
    """One `run` in a child process, the disk being filled before its full_at-th write to it; (exit code, output), the
    latter with a dot for every write."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.dup2(writing, 1)
        sys.stderr = os.fdopen(1, "w", buffering=1)
        os._exit(_run(plan, truth, disk, full_at))
    os.close(writing)
    with os.fdopen(reading) as stream:
        output = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


def _run(plan: Plan, truth: Path, disk: Disk, full_at: int | None) -> int:
    executor, writes, filling = Executor(plan, truth=truth), 0, False

    def count(event: str, arguments: tuple) -> None:
        nonlocal writes, filling
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if filling or not writing or not str(arguments[0]).startswith(str(disk.path)):
            return
        writes += 1
        os.write(1, b".")
        if writes == full_at:
            filling = True
            disk.fill()
            filling = False

    sys.addaudithook(count)
    return cli.guarded(lambda: FAILED if run_plan(plan, Lines(), launcher=executor) else 0)


@pytest.mark.parametrize("disk", [8], indirect=True)
def test_a_disk_that_fills_at_any_write(seed, disk, tmp_path, simulated, fault):
    rng, rows = random.Random(seed), ["half-split"]
    _, dots = attempt(plan_of(disk.path, rows, [0]), tmp_path / "truth", disk, None)
    assert len(dots) > 50
    for full_at in rng.sample(range(1, len(dots) + 1), 12):
        plan, truth = plan_of(disk.path / str(full_at), rows, [0]), tmp_path / f"truth-{full_at}"
        code, output = attempt(plan, truth, disk, full_at)
        fault("disk full", "any write of a simulated run")
        disk.free()
        check_what_is_there(plan)
        # Either our own write has failed, or that of a stage.
        assert code in (cli.FAILED, FAILED) and "Traceback" not in output, output
        if code == cli.FAILED:
            assert "No space left on device" in output and "run the same command again" in output, output
        code, output = attempt(plan, truth, disk, None)
        assert code == 0 and not plan.missing()
        check_what_is_there(plan)
        check_ledgers(plan, truth)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("disk", [400], indirect=True)
def test_a_disk_that_fills_while_verl_trains(seed, disk, tmp_path, fault):
    recipe, run_dir = write_recipe(tmp_path, rows=("direct-grpo",)), disk.path / "run"
    disk.read_only(True)
    with running(recipe, run_dir) as run:
        assert run.wait() == cli.BAD_INPUT and "cannot be written: Read-only file system" in run.output, run.output
    fault("read-only run directory", "before the first stage")
    disk.read_only(False)
    with running(recipe, run_dir) as run:
        directory = run.wait_for("student-rl-all")
        run.until("a step", lambda: len(read_metrics(directory)) > seed % 3)
        disk.fill()
        fault("disk full", "checkpoints of student RL")
        assert run.wait() == cli.FAILED, run.output
        assert "No space left on device" in run.output or "is full" in run.output, run.output
        assert run.left_behind() == []
    disk.free()
    nothing_half_written(run_dir)
    finish(recipe, run_dir)
    nothing_half_written(run_dir)
    ledger = manifests(run_dir)["student-rl-all"]["ledger"]
    assert len(ledger["labels_read"]) == 32 and ledger["updates"] == 4


@pytest.mark.parametrize("disk", [8], indirect=True)
def test_a_directory_that_cannot_be_written_is_refused_by_every_command_that_would(seed, disk, simulated, fault):
    plan = plan_of(disk.path, ["direct-grpo"], [0])
    assert run_plan(plan, Lines(), launcher=Executor(plan)) == []
    disk.read_only(True)
    recipe, run_dir = str(plan.recipe.path), str(plan.context.run_dir)
    asked: dict[str, Callable[[], int]] = {
        "run": lambda: cli.main(["run", recipe, "--run-dir", run_dir, "--rows", "direct-grpo"]),
        "gc": lambda: cli.main(["gc", recipe, "--run-dir", run_dir, "--delete"]),
    }
    for command, ask in asked.items():
        assert ask() == cli.BAD_INPUT, command
        fault("read-only run directory", f"`{command}`")
    assert cli.main(["verify", run_dir]) == 0 and cli.main(["status", recipe, "--run-dir", run_dir]) == 0
    disk.read_only(False)
