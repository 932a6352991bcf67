"""A real Ray cluster of two nodes that is not ours: waited for, examined, and never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid

import pytest

from tests.support.workflow.project import Ended
from verl_s2d.errors import UserError
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.hosts.external_cluster import GivenCluster, ask_for_check
from verl_s2d.workflow.hosts.local_cluster import RayCluster
from verl_s2d.workflow.hosts.process import MARKER, SubprocessLauncher, kill_marked
from verl_s2d.workflow.hosts.ray_places import Demand

QUEUE = """
import ray, sys
ray.init(namespace="transfer_queue")
@ray.remote(num_cpus=0)
class Controller:
    def ready(self):
        return True
kept = Controller.options(name="TransferQueueController").remote()
ray.get(kept.ready.remote())
print("there", flush=True)
sys.stdin.read()
"""


class Cluster:
    """A head with one logical accelerator, and a second node that comes and goes."""

    def __init__(self, directory):
        self.run = uuid.uuid4().hex
        environment = {**os.environ, MARKER: self.run}
        environment.pop("RAY_ADDRESS", None)
        self.head = RayCluster(directory, self.run, SubprocessLauncher(), environment, "cpu", Demand(1, 1))
        self.environment = environment | self.head.environment()
        self._node = None

    def join(self) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--address={self.environment['RAY_ADDRESS']}", "--num-cpus=4", "--num-gpus=1"]
        self._node = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)

    def lose(self) -> None:
        self._node.kill()
        self._node.wait(timeout=30)
        # Ray's own processes of the node end with it, but a lost machine does not say goodbye.
        subprocess.run(["pkill", "-9", "-P", str(self._node.pid)], check=False)

    def close(self) -> None:
        self.head.stop()
        kill_marked(self.run)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("head"))
    yield made
    made.close()


@pytest.fixture
def given(cluster, tmp_path, monkeypatch):
    """Makes a GivenCluster that wants `nodes`, and keeps what it told."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, cluster.environment[name])
    told = []

    def make(nodes, minutes=1.0, run_dir=tmp_path, launcher=None, cpus=1, units=0):
        launcher, environment = launcher or SubprocessLauncher(), cluster.environment
        demand = Demand(nodes, 1, cpus_per_worker=cpus, storage_units=units)
        return GivenCluster(run_dir, launcher, environment, demand=demand, wait_minutes=minutes, note=told.append)

    make.told = told
    return make


def test_a_cluster_with_free_places_is_used_as_it_is(given):
    cluster = given(nodes=1)
    assert cluster.environment() == {} and given.told == []
    cluster.settle()
    cluster.stop()
    assert given(nodes=1).environment() == {}, "still there"


def test_a_node_that_is_missing_is_waited_for_up_to_a_limit_and_one_that_comes_is_used(given, cluster):
    with pytest.raises(StageFailed, match=r"not ready within cluster.wait_minutes = 0: 1 of 2 node\(s\) with 1 GPU"):
        given(nodes=2, minutes=0).environment()
    joining = threading.Timer(1, cluster.join)
    joining.start()
    assert given(nodes=2).environment() == {}
    assert "1 of 2 node(s)" in given.told[0]
    joining.join(timeout=10)
    cluster.lose()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            given(nodes=2, minutes=0).environment()
        except StageFailed as failed:
            if "1 of 2 node(s)" in failed.problem:
                return
    pytest.fail("the lost node still counts")


def test_what_the_stage_before_left_is_waited_for(given, cluster):
    left = [sys.executable, "-c", QUEUE]
    with subprocess.Popen(left, env=cluster.environment, stdin=-1, stdout=-1, text=True) as training:
        assert training.stdout.readline() == "there\n"
        with pytest.raises(StageFailed, match="another verl training is running"):
            given(nodes=1, minutes=0).environment()
        ending = threading.Timer(1, training.stdin.close)
        ending.start()
        assert given(nodes=1).environment() == {}
        ending.join(timeout=10)


def test_a_run_directory_that_a_node_does_not_see_is_refused(given, tmp_path):
    class Elsewhere(SubprocessLauncher):
        def start(self, argv, env, cwd, log):
            return super().start([*argv[:-1], "/nowhere/run"], env, cwd, log)

    with pytest.raises(UserError, match="does not see /nowhere/run: put the run directory on storage that all share"):
        given(nodes=1, launcher=Elsewhere()).environment()


def test_a_cluster_with_too_few_cpus_is_refused_with_the_number_before_a_stage_hangs_in_it(given, cluster, monkeypatch):
    with pytest.raises(UserError, match=r"a stage holds 3004 there \(3000 for each of 1 GPU.*--num-cpus=3004 or more"):
        given(nodes=1, cpus=3000, units=2).environment()
    with pytest.raises(UserError, match="--num-cpus=3004"):
        ask_for_check(Demand(1, 1, cpus_per_worker=3000, storage_units=2), cluster.environment)
    assert (
        ask_for_check(Demand(1, 1, cpus_per_worker=3, storage_units=2), cluster.environment) == "can take a stage now"
    )


def test_a_cluster_that_does_not_answer_is_no_cluster(given):
    class Dead:
        def start(self, argv, env, cwd, log):
            log.write_text("ConnectionError: no head\n")
            return Ended(1)

    with pytest.raises(StageFailed, match="does not answer"):
        given(nodes=1, minutes=0, launcher=Dead()).environment()
