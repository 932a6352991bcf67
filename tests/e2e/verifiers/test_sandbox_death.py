"""Servers of the sandbox that are killed again and again in the middle of GRPO: no wrong 0, and a resumed stage."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.minimal_recipe import write_minimal_recipe
from tests.support.workflow.faults import Run, running
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.workflow.hosts.process import marked_processes
from verl_s2d.workflow.store.checkpoints import completed_step

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS, ROLLOUTS = 3, 16
SERVER = "verl_s2d.sandbox.box_server"
VERIFIER = """
from verl_s2d.sandbox.program import Program
from verl_s2d.sandbox.sandbox import shared


def judge(data_source, solution_str, ground_truth, extra_info=None):
    '''Give every response 1, but only on the word of a program in a box.'''
    return float(shared().run(Program("print(6 * 7)")).stdout.strip() == "42")
"""


def write_recipe(directory: Path) -> Path:
    (directory / "judge.py").write_text(VERIFIER)
    path = write_minimal_recipe(directory, name="killed", rows=["direct-grpo"])
    recipe = yaml.safe_load(path.read_text())
    recipe["verifier"] = "judge.py:judge"
    recipe["stages"]["student_rl"]["steps"] = STEPS
    path.write_text(yaml.safe_dump(recipe))
    return path


def servers(run: Run) -> list[psutil.Process]:
    """Find the servers of the run's sandboxes."""
    found = []
    for pid in marked_processes(run.run_id):
        try:
            process = psutil.Process(pid)
            if SERVER in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def killed_again_and_again(run: Run) -> Iterator[list[int]]:
    """Kill every server of the run, also those that are started in their place; yields the pids of the killed."""
    killed, end = [], threading.Event()

    def kill() -> None:
        while not end.wait(0.02):
            for process in servers(run):
                try:
                    process.kill()
                    killed.append(process.pid)
                except psutil.Error:
                    continue

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        end.set()
        killer.join()


@pytest.mark.timeout(1800)
def test_killed_sandboxes_leave_no_wrong_zero_and_the_stage_goes_on(tmp_path):
    recipe, run_dir = write_recipe(tmp_path), tmp_path / "run"
    with running(recipe, run_dir) as run:
        stage = run.wait_for("student-rl-all")
        run.until("the first checkpoint", lambda: completed_step(stage / "checkpoints"), limit=600)
        assert servers(run)
        with killed_again_and_again(run) as killed:
            assert run.wait(800) == 1, run.output[-3000:]
        assert killed
        assert "the sandbox failed 3 times" in run.output and "resumes from its last checkpoint" in run.output
    before = completed_step(stage / "checkpoints")
    assert 1 <= before < STEPS and not (stage / "manifest.json").exists()

    with running(recipe, run_dir) as run:
        assert run.wait(800) == 0, run.output[-3000:]
    steps, manifest = read_metrics(stage), json.loads((stage / "manifest.json").read_text())
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert all(data["critic/score/min"] == data["critic/score/max"] == 1 for data in steps.values())
    calls = manifest["ledger"]["verifier_calls"]
    assert calls >= STEPS * ROLLOUTS and manifest["ledger"]["unscored_calls"] > 0
    print(before, len(killed), {key: manifest["ledger"][key] for key in ("verifier_calls", "unscored_calls")})
