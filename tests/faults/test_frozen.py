"""A process that is stopped, not dead: nothing fails or goes on. The watchdog ends the stage and says what waits."""

from __future__ import annotations

import random
import signal

import pytest

from tests.support.workflow.faults import finish, manifests, nothing_half_written, running, write_recipe
from verl_s2d.metrics.metric_logs import read_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(1800)
def test_a_frozen_process_is_noticed_and_named(seed, tmp_path, fault):
    victim = random.Random(seed).choice(["vllm server", "worker"])
    # The start and the first step have to fit as well.
    recipe = write_recipe(tmp_path, rows=("direct-grpo",), cluster={"step_minutes": 5})
    run_dir = tmp_path / "run"
    with running(recipe, run_dir) as run:
        directory = run.wait_for("student-rl-all")
        run.until("a step", lambda: read_metrics(directory))
        assert run.kill(victim, number=signal.SIGSTOP)
        fault(f"frozen {victim} (the others wait for it)", "student RL")
        assert run.wait(900) == 1, run.output[-3000:]
        assert "student-rl-all stalled" in run.output and "whole log:" in run.output
        assert "At work: " in run.output, "what the workers were waiting in"
        assert run.left_behind() == []
    nothing_half_written(run_dir)
    finish(recipe, run_dir)
    assert manifests(run_dir)["student-rl-all"]["ledger"]["updates"] == 4
