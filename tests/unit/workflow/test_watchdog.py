"""A stage that makes no progress: noticed within limits, with the log that holds the error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from verl_s2d.stages import stages
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.process import SubprocessLauncher
from verl_s2d.workflow.interruption import Interruption
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.stage import Command
from verl_s2d.workflow.stage_process import run_attempt
from verl_s2d.workflow.watch.log_errors import find_error, worker_logs
from verl_s2d.workflow.watch.watchdog import Limits, Watchdog

TRACEBACK = """Traceback (most recent call last):
  File "engine.py", line 7, in update_weights
    raise ValueError("shapes differ")
ValueError: weights of layer 3 do not fit
expected 64, got 32
"""
WORKER = "worker-7e534b1c5a40-01000000-4711.err"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Stage:
    """A stage's directory with a watchdog that sees ten seconds pass at every look."""

    def __init__(self, tmp_path: Path, limits: Limits, stepping: bool = True):
        self.directory, self.logs, self.clock = tmp_path / "stage", tmp_path / "logs", Clock()
        (self.directory / "metrics").mkdir(parents=True)
        self.logs.mkdir()
        self.log, self.metrics = self.directory / "log.txt", self.directory / "metrics" / "attempt-1.jsonl"
        self.log.write_text("starting\n")
        self.dog = Watchdog(self.directory, self.metrics, self.logs, limits, stepping=stepping, clock=self.clock)

    def say(self, text: str = "") -> None:
        with self.log.open("a") as stream:
            stream.write(text or f"{self.clock.now:.0f} tokens\n")

    def step(self, number: int) -> None:
        with self.metrics.open("a") as stream:
            stream.write(json.dumps({"step": number, "data": {}}) + "\n")

    def pass_time(self, seconds: float, *, talking: bool = False, saying: str = "") -> str | None:
        """The verdict after so long, the first one if there is any."""
        for _ in range(round(seconds / 10)):
            self.clock.now += 10
            if talking or saying:
                self.say(saying)
            assert self.dog.look()
            if verdict := self.dog.stalled():
                return verdict
        return None


def test_silence_is_a_stall_after_the_limit_and_not_before(tmp_path):
    stage = Stage(tmp_path, Limits(silent=600, step=3600))
    assert stage.pass_time(600) is None
    stage.say()
    assert stage.pass_time(600) is None
    assert "no output for 10.2 minutes (limit: cluster.stall_minutes = 10)" in stage.pass_time(20)


def test_output_without_a_step_is_a_stall_unless_steps_are_that_long(tmp_path):
    stage = Stage(tmp_path, Limits(silent=600, step=3600))
    assert stage.pass_time(3600, talking=True) is None
    assert "no step for 60.2 minutes (limit: cluster.step_minutes = 60)" in stage.pass_time(20, talking=True)
    slow = Stage(tmp_path / "slow", Limits(silent=600, step=3600))
    slow.step(1)
    slow.pass_time(10)
    assert slow.pass_time(1200, talking=True) is None
    slow.step(2)
    assert slow.pass_time(10 * 1200 - 100, talking=True) is None
    assert "its longest step took 20" in slow.pass_time(300, talking=True)
    preparing = Stage(tmp_path / "no-steps", Limits(silent=600, step=3600), stepping=False)
    assert preparing.pass_time(9000, talking=True) is None


def test_the_start_is_no_step_that_the_next_may_take_ten_times(tmp_path):
    stage = Stage(tmp_path, Limits(silent=3600, step=600))
    stage.pass_time(500)
    stage.step(1)
    assert stage.pass_time(600) is None
    assert stage.pass_time(20) == "no step for 10.2 minutes (limit: cluster.step_minutes = 10)"


def test_after_the_first_step_only_steps_decide(tmp_path):
    stage = Stage(tmp_path, Limits(silent=60, step=600))
    stage.pass_time(10)
    stage.step(1)
    assert stage.pass_time(600) is None, "silent, as verl is while it updates"
    assert "no step for" in stage.pass_time(20, talking=True)


def test_files_count_as_output_also_when_the_clock_was_set_back(tmp_path):
    stage = Stage(tmp_path, Limits(silent=600, step=36000))
    assert stage.pass_time(590) is None
    shard = stage.directory / "shard"
    shard.touch()
    os.utime(shard, (0, 0))
    assert stage.pass_time(590) is None


def test_a_log_that_is_begun_anew_or_gone_is_no_reason_to_fail(tmp_path):
    stage = Stage(tmp_path, Limits(silent=600, step=36000))
    stage.pass_time(100, talking=True)
    stage.log.unlink()
    assert stage.pass_time(300) is None
    stage.log.write_text("anew\n")
    assert stage.pass_time(590) is None
    assert "no output for" in stage.pass_time(30)


def test_an_error_that_a_step_followed_is_not_shown(tmp_path):
    stage = Stage(tmp_path, Limits(silent=600, step=3600))
    stage.pass_time(10)
    stage.step(1)
    stage.pass_time(10)
    (stage.logs / WORKER).write_text(TRACEBACK)
    stage.pass_time(20, talking=True)
    assert stage.dog.error().actor == "a worker of Ray, process 4711"
    assert "its last step was 1, at" in stage.dog.progress()
    stage.step(2)
    assert stage.pass_time(500) is None
    assert stage.dog.error() is None


def test_an_error_right_after_a_step_is_not_taken_for_one_before_it(tmp_path):
    stage = Stage(tmp_path, Limits(silent=600, step=3600))
    stage.pass_time(10)
    stage.step(1)  # seen only when somebody looks, which is after the error
    (stage.logs / WORKER).write_text(TRACEBACK)
    stage.pass_time(20, talking=True)
    assert stage.dog.error() is not None


@pytest.mark.parametrize(
    "line",
    [
        "The node with node id: e7709d and address: 10.0.0.2 and node name: 10.0.0.2 has been marked dead because the "
        "detector has missed too many heartbeats from it. This can happen when a \t(1) raylet crashes unexpectedly",
        "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem",
    ],
)
def test_what_ray_says_of_those_that_are_gone_is_an_error(tmp_path, line):
    log = tmp_path / "log.txt"
    log.write_text(f"\x1b[33m(raylet)\x1b[0m {line}\n\x1b[36m(TaskRunnerV1 pid=1)\x1b[0m pending: 0, running: 8\n")
    assert line in find_error([log], {}).lines[0]


def test_a_worker_s_traceback_beats_the_driver_s(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    driver = tmp_path / "log.txt"
    driver.write_text("Traceback (most recent call last):\n  in get\nray.exceptions.ActorDiedError: an actor died\n")
    (logs / WORKER).write_text("quiet\n")
    (logs / WORKER).with_suffix(".out").write_text(":actor_name:vLLMHttpServer\n")
    assert find_error([*worker_logs(logs), driver], {}).log == driver
    (logs / WORKER).write_text(f"loading\n{TRACEBACK}goodbye\n")
    found = find_error([*worker_logs(logs), driver], {})
    assert found.log == logs / WORKER and found.actor == "vLLMHttpServer, process 4711"
    assert found.lines[0].startswith("Traceback") and "ValueError: weights of layer 3 do not fit" in found.lines
    assert find_error([logs / WORKER], {logs / WORKER: 10**6}) is None


def test_what_ray_forwards_is_told_apart_by_actor(tmp_path):
    driver = tmp_path / "log.txt"
    lines = [f"\x1b[36m(WorkerDict pid=4711)\x1b[0m {line}" for line in TRACEBACK.splitlines()]
    lines.insert(2, "(TaskRunnerV1 pid=12) step 3")
    driver.write_text("\n".join([*lines, "Traceback (most recent call last):", "  in main", "RuntimeError: gone"]))
    forwarded = find_error([driver], {}, only_forwarded=True)
    assert forwarded.actor == "WorkerDict, process 4711" and forwarded.lines == TRACEBACK.splitlines()
    assert find_error([driver], {}).lines[-1] == "RuntimeError: gone"
    long = "".join(f"  frame {i}\n" for i in range(50))
    driver.write_text(f"Traceback (most recent call last):\n{long}ValueError: deep\n")
    assert len(find_error([driver], {}).lines) == 15 and find_error([driver], {}).lines[-1] == "ValueError: deep"


class OnRay:
    def __init__(self, logs: Path):
        self._logs = logs

    def worker_logs(self):
        return self._logs

    def at_work(self):
        return ["WorkerDict.update_weights (process 4711)"]


def attempt(tmp_path, code, environment=None, **limits):
    """Run Python code as a stage's process, with Ray logs of its own; returns the failure."""
    logs, directory = tmp_path / "logs", tmp_path / "stage"
    logs.mkdir()
    (directory).mkdir()
    (logs / "worker-aa-01000000-1.err").write_text(f"of an earlier stage\n{TRACEBACK}")
    environment = {"LOGS": str(logs), "PYTHONUNBUFFERED": "1"} | (environment or {})
    node, progress = Node(stages()["grpo"], "student-rl-all", {}), PlainProgress()
    progress.stage_started(node, 1, 1, None, 1)
    with pytest.raises(StageFailed) as failed:
        run_attempt(
            node,
            Command([sys.executable, "-c", code]),
            directory,
            1,
            launcher=SubprocessLauncher(),
            environment=environment,
            limits=Limits(**{"silent": 60.0, "step": 60.0} | limits),
            progress=progress,
            interruption=Interruption(0, print),
            workers=OnRay(logs),
        )
    return failed.value


FAILING_WORKER = f"""
import os, sys, time
open("metrics/attempt-1.jsonl", "w").write('{{"step": 1, "data": {{}}}}\\n')
time.sleep(1)
open(os.environ["LOGS"] + "/{WORKER}", "w").write(":actor_name:WorkerDict\\n" + {TRACEBACK!r})
print("waiting for the worker")
"""


def test_a_process_that_hangs_is_stopped_with_the_actor_and_the_last_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("verl_s2d.workflow.watch.watchdog._LOOK_SECONDS", 0.1)
    monkeypatch.setattr("verl_s2d.workflow.stage_process._GRACE_SECONDS", 0.5)
    text = str(attempt(tmp_path, "import time; print('syncing weights'); time.sleep(60)", silent=1.0))
    assert "student-rl-all stalled: no output for" in text and "no step since" in text
    assert "At work: WorkerDict.update_weights (process 4711)." in text
    assert "| syncing weights" in text and str(tmp_path / "stage" / "log.txt") in text
    assert "shapes differ" not in text, "an error of an earlier stage is none of this one"


def test_a_process_that_waits_for_an_actor_that_died_is_stopped_with_the_reason(tmp_path, monkeypatch):
    class Died:
        """Stand in for the watch of deaths; Ray's own reports are checked in tests/contract/test_ray_deaths.py."""

        def __init__(self, launcher, environment, log):
            assert environment["RAY_ADDRESS"] == "127.0.0.1:6379"

        def death(self):
            return "AgentLoopWorker (process 12 on 10.0.0.2): Worker unexpectedly exits"

        def stop(self):
            (tmp_path / "stopped").touch()

    monkeypatch.setattr("verl_s2d.workflow.stage_process.DeathWatch", Died)
    monkeypatch.setattr("verl_s2d.workflow.stage_process._DEATH_SECONDS", 3.0)
    monkeypatch.setattr("verl_s2d.workflow.watch.watchdog._LOOK_SECONDS", 0.1)
    monkeypatch.setattr("verl_s2d.workflow.stage_process._GRACE_SECONDS", 0.5)
    code = FAILING_WORKER + "time.sleep(60)"
    failure = attempt(tmp_path, code, environment={"RAY_ADDRESS": "127.0.0.1:6379"})
    kept = tmp_path / "stage" / "worker-logs" / f"attempt-1-{WORKER}"
    assert "has died, AgentLoopWorker (process 12 on 10.0.0.2): Worker unexpectedly exits, so it" in str(failure)
    assert "its last step was 1, at" in str(failure) and "| error of WorkerDict, process 4711:" in str(failure)
    assert "ValueError: weights of layer 3 do not fit" in failure.lines and failure.log == kept
    assert TRACEBACK in kept.read_text() and (tmp_path / "stopped").exists()
    assert f"the stage's own log: {tmp_path / 'stage' / 'log.txt'}" in str(failure)


def test_a_process_that_fails_shows_the_worker_s_traceback_rather_than_its_own(tmp_path):
    failure = attempt(tmp_path, FAILING_WORKER + "raise RuntimeError('the worker died')")
    assert "failed with exit code 1" in str(failure) and "ValueError: weights of layer 3 do not fit" in failure.lines


def test_a_process_that_fails_by_itself_shows_the_end_of_its_log(tmp_path):
    failure = attempt(tmp_path, "raise RuntimeError('no such batch size')")
    assert failure.lines[-1] == "RuntimeError: no such batch size" and failure.log == tmp_path / "stage" / "log.txt"
