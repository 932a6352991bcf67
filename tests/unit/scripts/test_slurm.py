"""The Slurm example, with Slurm's and Ray's commands replaced by scripts that write down how they were called."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from tests.support.paths import ROOT
from verl_s2d.recipe.cluster_settings import Cluster

SCRIPT = ROOT / "recipes" / "clusters" / "slurm.sbatch"
COMMANDS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "if [[ $1 == show ]]; then printf 'n1\\nn2\\n'; fi",
    "ray": "sleep 1",
    "hostname": "echo 10.0.0.1 10.1.0.1",
    "verl-s2d": 'trap "exit 5" TERM; echo "on $RAY_ADDRESS" >> "$LOG"; for i in {1..300}; do sleep 0.1; done',
}


@pytest.fixture
def job(tmp_path):
    """The script as Slurm starts it on the first of two nodes; `run` as the command that trains."""

    def start(run: str | None = None) -> subprocess.Popen:
        for name, body in (COMMANDS | ({"verl-s2d": run} if run else {})).items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n{body}\n')
            path.chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
        environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}
        return subprocess.Popen(["bash", SCRIPT, "r.yaml", "/shared/run", "--rows", "a"], env=environment)

    return start


def log(tmp_path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []


def test_every_node_joins_one_cluster_and_the_exit_code_is_the_runs(job, tmp_path):
    assert job(run="sleep 0.5; exit 3").wait(timeout=60) == 3
    said = log(tmp_path)
    assert "verl-s2d run r.yaml --run-dir /shared/run --rows a" in said
    starts = sorted(line for line in said if line.startswith("ray start"))
    assert starts == [
        "ray start --block --disable-usage-stats --address=10.0.0.1:6379",
        "ray start --head --block --disable-usage-stats --node-ip-address=10.0.0.1 --port=6379",
    ]
    assert not any("requeue" in line for line in said)


def test_the_signal_before_the_time_limit_ends_the_run_and_queues_the_job_again(job, tmp_path):
    process = job()
    deadline = time.monotonic() + 60
    while "on 10.0.0.1:6379" not in log(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 5
    assert log(tmp_path)[-1] == "scontrol requeue 7"


def test_the_signal_comes_before_the_time_that_a_stage_gets_to_save():
    notice = int(re.search(r"--signal=B:TERM@(\d+)", SCRIPT.read_text())[1])
    grace = Cluster().on("cuda").grace_seconds
    assert notice >= grace + 120, "stopping the run and queueing the job again takes time too"
    assert f"{notice:,} seconds" in (SCRIPT.parent / "README.md").read_text()
    assert f"({grace:,.0f} on GPUs)" in (SCRIPT.parent / "README.md").read_text()
