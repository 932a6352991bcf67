"""Ray's control store tells deaths that were meant from those that were not."""

from __future__ import annotations

import os
import sys
import time

import pytest

from verl_s2d.workflow.hosts.local_cluster import RayCluster
from verl_s2d.workflow.hosts.process import MARKER, SubprocessLauncher, kill_marked, stop
from verl_s2d.workflow.hosts.ray_places import Demand
from verl_s2d.workflow.watch import ray_deaths

DRIVER = """
import os, signal, sys, time, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
class Actor:
    def __init__(self, fails=False):
        if fails:
            raise ValueError("no such model")
    def pid(self):
        return os.getpid()
    def leave(self):
        ray.actor.exit_actor()
    def exit(self, code):
        sys.exit(code)
    def adopt(self):
        self.child = Actor.remote()
        return ray.get(self.child.pid.remote(), timeout=60)

def called(reference):
    try:
        return ray.get(reference, timeout=60)
    except ray.exceptions.RayError:
        pass

meant = [Actor.remote() for _ in range(4)]
called(meant[0].leave.remote())
called(meant[1].exit.remote(0))
called(meant[2].pid.remote())
ray.kill(meant[2])
called(meant[3].pid.remote())
del meant  # no reference is left
restarted = Actor.options(max_restarts=1).remote()
os.kill(called(restarted.pid.remote()), signal.SIGKILL)
called(restarted.pid.remote())
print("as meant", flush=True)
time.sleep(20)
ACTION
time.sleep(600)
"""
ACTIONS = {
    "own = Actor.remote(); called(own.adopt.remote()); os.kill(called(own.pid.remote()), 9)": "unexpectedly exits",
    "broken = Actor.remote(True)": "its __init__ raised ValueError: no such model",
}


@pytest.mark.parametrize(("action", "said"), ACTIONS.items(), ids=["kill -9", "__init__"])
def test_only_a_death_that_nobody_meant_is_reported(tmp_path, monkeypatch, action, said):
    run_id, launcher = f"deaths{os.getpid()}", SubprocessLauncher()
    environment = {**os.environ, MARKER: run_id}
    environment.pop("RAY_ADDRESS", None)
    cluster = RayCluster(tmp_path, run_id, launcher, environment, "cpu", Demand(1, 1))
    try:
        environment |= cluster.environment()
        log = tmp_path / "driver.txt"
        driver = launcher.start([sys.executable, "-c", DRIVER.replace("ACTION", action)], environment, tmp_path, log)
        watch = ray_deaths.DeathWatch(launcher, environment, tmp_path / "logs" / "deaths.txt")
        deadline = time.monotonic() + 180
        while "as meant" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "as meant" in log.read_text()
        time.sleep(12)
        assert watch.death() is None, "of those that were meant, or followed by a restart"
        while watch.death() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert watch.death().startswith("Actor (process ") and said in watch.death()
        watch.stop()
        stop(driver, 1)
    finally:
        cluster.stop()
        kill_marked(run_id)
