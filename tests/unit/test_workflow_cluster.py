"""The local Ray head: joined by a driver, quiet between stages, gone at the end and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

from verl_s2d.workflow.cluster import RayCluster, held_up
from verl_s2d.workflow.process import MARKER, SubprocessLauncher, kill_marked, marked_processes

DRIVER = """
import ray
ray.init()
@ray.remote(num_gpus=1)
class Actor:
    def f(self):
        return 1
assert ray.get(Actor.remote().f.remote()) == 1
print(int(ray.cluster_resources()["CPU"]), int(ray.cluster_resources()["GPU"]))
"""


def test_a_process_that_is_stopped_is_told(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert "stopped" not in held_up(process.pid)
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while "stopped" not in held_up(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held_up(process.pid) == ", stopped by a signal"
    finally:
        process.kill()
        process.wait(10)
    assert held_up(process.pid) == ""


class EndsFirst(SubprocessLauncher):
    """The first head ends at once, as one does whose port was taken a moment before."""

    def __init__(self):
        self.ports: list[str] = []

    def start(self, argv, env, cwd, log):
        self.ports += [argument for argument in argv if argument.startswith("--port=")]
        ends = [sys.executable, "-c", "raise SystemExit(1)"]
        return super().start(ends if len(self.ports) == 1 else argv, env, cwd, log)


def test_one_head_for_several_drivers(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = uuid.uuid4().hex
    environment = {**os.environ, MARKER: run}
    launcher = EndsFirst()
    cluster = RayCluster(tmp_path, run, launcher, environment, "cpu", 2)
    try:
        joined = cluster.environment()
        assert len(set(launcher.ports)) == 2, "another try, at another port"
        for _ in range(2):
            assert cluster.environment() == joined
            done = subprocess.run(
                [sys.executable, "-c", DRIVER], env=environment | joined, capture_output=True, text=True, timeout=100
            )
            assert done.stdout.split() == ["32", "2"], done.stderr[-2000:]
            cluster.settle()
        assert len(marked_processes(run)) >= 3
        cluster.stop()
        assert marked_processes(run) == []
        assert cluster.environment() != joined, "a stopped head is started again"
        assert kill_marked(run) >= 3 and marked_processes(run) == []
    finally:
        cluster.stop()
        kill_marked(run)
