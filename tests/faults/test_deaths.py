"""kill -9 of an actor before the first step, while its driver waits for something else: Ray reports the death."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.workflow.faults import finish, manifests, nothing_half_written, running, write_recipe
from verl_s2d.metrics.metric_logs import read_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(1800)
def test_an_actor_that_died_before_the_first_step_ends_the_stage(seed, tmp_path, fault):
    recipe, run_dir = write_recipe(tmp_path, rows=("direct-grpo",)), tmp_path / "run"
    with running(recipe, run_dir) as run:
        directory = run.wait_for("student-rl-all")
        assert run.kill("agent loop worker", limit=300, number=0), "there is one now"
        # A server that is frozen keeps the driver waiting; by itself it would do so for cluster.step_minutes (30).
        assert run.kill("vllm server", number=signal.SIGSTOP)
        assert run.kill("agent loop worker")
        killed = time.monotonic()
        assert not read_metrics(directory)
        fault("kill -9 of the agent loop worker before the first step", "student RL")
        assert run.wait(300) == 1, run.output[-3000:]
        print(f"ended {time.monotonic() - killed:.0f} s after the death\n{run.output}", flush=True)
        assert "waiting for an actor that has died, AgentLoopWorker" in run.output and "so it was stopped" in run.output
        assert "whole log:" in run.output and run.left_behind() == []
    nothing_half_written(run_dir)
    finish(recipe, run_dir)
    assert manifests(run_dir)["student-rl-all"]["ledger"]["updates"] == 4
