"""The local Ray head: joined by a driver, quiet between stages, gone at the end and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from tests.support.workflow.project import Ended
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.hosts.local_cluster import RayCluster, held_up
from verl_s2d.workflow.hosts.process import MARKER, SubprocessLauncher, kill_marked, marked_processes
from verl_s2d.workflow.hosts.ray_places import Demand

# All that verl holds for two workers, then actors that hold nothing, as its agent loops and servers do.
DRIVER = """
import ray
from ray.util.placement_group import placement_group
ray.init()
@ray.remote
class Actor:
    def f(self):
        return 1
held = [Actor.options(num_cpus=1).remote() for _ in range(1 + UNITS)]
assert ray.get([actor.f.remote() for actor in held], timeout=60) == [1] * len(held)
workers = placement_group([{"CPU": 3, "GPU": 1}] * 2, strategy="STRICT_PACK")
ray.get(workers.ready(), timeout=60)
helpers = [Actor.remote() for _ in range(2)]
assert ray.get([actor.f.remote() for actor in helpers], timeout=60) == [1, 1]
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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_machine_with_few_cores_offers_ray_as_many_cpus_as_a_stage_holds(tmp_path, monkeypatch, device):
    monkeypatch.setattr("verl_s2d.workflow.hosts.ray_places.os.cpu_count", lambda: 4)
    started = []

    class Refuses(SubprocessLauncher):
        def start(self, argv, env, cwd, log):
            started.append(argv)
            log.touch()
            return Ended(1)

    demand = Demand(1, 8, cpus_per_worker=3, storage_units=2)
    with pytest.raises(StageFailed):
        RayCluster(tmp_path, uuid.uuid4().hex, Refuses(), {}, device, demand).environment()
    (cpus,) = (int(word.partition("=")[2]) for word in started[0] if word.startswith("--num-cpus="))
    assert cpus >= 8 * 3 + 2 + 2
    assert ("--num-gpus=8" in started[0]) == (device == "cpu"), "Ray counts real GPUs by itself"


SAYS_THAT_IT_STARTED = """
import socket, sys, time
bound = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("Ray runtime started.", flush=True)
time.sleep(0.7)
sys.exit(1)
"""


def test_a_head_that_ends_just_after_its_start_is_started_again(tmp_path):
    """A head of Ray on a busy machine: its client server has given up, and it notices a second after it has started."""
    ports = []

    class Short(SubprocessLauncher):
        def start(self, argv, env, cwd, log):
            (port,) = (word.partition("=")[2] for word in argv if word.startswith("--port="))
            ports.append(port)
            return super().start([sys.executable, "-c", SAYS_THAT_IT_STARTED, port], env, cwd, log)

    with pytest.raises(StageFailed, match="did not start: it ended"):
        RayCluster(tmp_path, uuid.uuid4().hex, Short(), dict(os.environ), "cpu", Demand(1, 1)).environment()
    assert len(set(ports)) == 3


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
    # No more than a stage is said to hold: what a cluster of the user's is refused for when it has less.
    monkeypatch.setattr("verl_s2d.workflow.hosts.ray_places._HELPERS", 0)
    monkeypatch.setattr("verl_s2d.workflow.hosts.ray_places.os.cpu_count", lambda: 1)
    run = uuid.uuid4().hex
    environment = {**os.environ, MARKER: run}
    launcher = EndsFirst()
    demand = Demand(1, 2, cpus_per_worker=3, storage_units=2)
    cluster = RayCluster(tmp_path, run, launcher, environment, "cpu", demand)
    try:
        joined = cluster.environment()
        assert len(set(launcher.ports)) == 2, "another try, at another port"
        for _ in range(2):
            assert cluster.environment() == joined
            done = subprocess.run(
                [sys.executable, "-c", DRIVER.replace("UNITS", str(demand.storage_units))],
                env=environment | joined,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert done.stdout.split() == [str(6 + 2 + 2), "2"], done.stderr[-2000:]
            cluster.settle()
        assert len(marked_processes(run)) >= 3
        cluster.stop()
        assert marked_processes(run) == []
        assert cluster.environment() != joined, "a stopped head is started again"
        assert kill_marked(run) >= 3 and marked_processes(run) == []
    finally:
        cluster.stop()
        kill_marked(run)
