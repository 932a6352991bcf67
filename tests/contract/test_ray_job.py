"""The ids of Ray jobs: those of stages differ between heads, as verl's sockets for weights have to."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
from verl.workers.rollout.vllm_rollout import vllm_rollout

from tests.support.paths import ROOT
from verl_s2d.workflow.hosts.process import MARKER

JOB = """
import verl, ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
ask = ray.remote(lambda: ray.get_runtime_context().get_job_id())
print("job", ray.get_runtime_context().get_job_id(), ray.get(ask.remote()))
"""


def job(environment):
    """Start a head of its own; return the id of the first job there."""
    kept = {name: value for name, value in os.environ.items() if name not in (MARKER, "RAY_ADDRESS")}
    told = subprocess.run(
        [sys.executable, "-c", JOB],
        cwd=ROOT,
        env=kept | {"VERL_PLATFORM": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = [line.split() for line in told.stdout.splitlines() if line.startswith("job ")]
    assert found, told.stderr[-2000:]
    assert found[0][1] == found[0][2], "workers know the job by another id"
    return found[0][1]


@pytest.mark.timeout(900)
def test_first_jobs_of_two_heads_have_different_ids_in_a_run():
    first, second = (job({MARKER: name}) for name in ("one", "two"))
    assert first != second and "01000000" not in (first, second)


@pytest.mark.timeout(600)
def test_a_verl_command_outside_a_run_is_counted_by_ray():
    assert job({}) == "01000000"


def test_verl_names_the_socket_of_a_weight_update_by_the_job():
    source = inspect.getsource(vllm_rollout)
    assert "job_id = ray.get_runtime_context().get_job_id()" in source
    assert "ipc:///tmp/rl-colocate-zmq-{job_id}-replica-{self.replica_rank}-rank-{local_rank}.sock" in source
