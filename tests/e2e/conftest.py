"""One warm host and one Ray head for all tests that run verl, as a run of the workflow has them; models and prompts."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.paths import ROOT
from tests.support.tiny import write_model, write_problems
from tests.support.tiny_training import prune, sharpen
from tests.support.tiny_verl import verl_command
from verl_s2d.logs import last_lines
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.workflow.hosts.local_cluster import CLUSTER_MARKER, RayCluster
from verl_s2d.workflow.hosts.process import MARKER, kill_marked, marked_processes, stop, wait
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand
from verl_s2d.workflow.hosts.warm_launcher import WarmLauncher

_LIMIT_SECONDS = 600
DEMAND = Demand(1, 2, cpus_per_worker=RL_CPUS_PER_WORKER, storage_units=1)
"""The largest command: two workers, and the CPU overlay's one storage unit."""


class Verl:
    """Runs verl commands. `log` of the newest one stays readable for messages."""

    def __init__(self, directory: Path):
        self.run_id = uuid.uuid4().hex
        # Test modules that verl is told to load are importable in every process.
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = stage_environment("cpu") | {MARKER: self.run_id, "PYTHONPATH": path}
        self.environment.pop("RAY_ADDRESS", None)
        self._launcher = WarmLauncher(self.environment | {CLUSTER_MARKER: self.run_id}, directory / "warm.log")
        self._cluster = RayCluster(directory, self.run_id, self._launcher, self.environment, "cpu", DEMAND)

    def run(
        self,
        kind: str,
        *,
        student: Path,
        data: Path,
        out: Path,
        steps: int,
        overrides: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> dict[int, dict[str, Any]]:
        """Run `python -m verl.trainer.main_ppo` (tests/support/tiny_verl.py) to its end; returns step -> metrics.

        Fails the test, with the end of the log, when the command fails or takes longer than ten minutes.
        """
        command = verl_command(kind, student=student, data=data, out=out, steps=steps, overrides=overrides)
        code = self.execute(command, out, environment)
        if code != 0:
            pytest.fail("\n".join([f"{kind}: exit code {code}", *last_lines(out / "log.txt", 40)]))
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["data"] for line in lines}

    def execute(self, command: list[str], out: Path, environment: Mapping[str, str] | None = None) -> int | None:
        """Run a command on the Ray head, output to out/log.txt; returns its exit code, None when it took too long."""
        out.mkdir(parents=True, exist_ok=True)
        joined = self.environment | self._cluster.environment() | dict(environment or {})
        handle = self._launcher.start(command, joined, out, out / "log.txt")
        try:
            return wait(handle, _LIMIT_SECONDS)
        finally:
            stop(handle, 5)
            self._cluster.settle()

    def kill(self, command: list[str], out: Path, when: Callable[[], bool]) -> None:
        """Run a command, and kill it with signal 9 once `when` is true; Ray kills its workers then."""
        out.mkdir(parents=True, exist_ok=True)
        handle = self._launcher.start(command, self.environment | self._cluster.environment(), out, out / "log.txt")
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not when():
            assert handle.poll() is None and time.monotonic() < deadline, last_lines(out / "log.txt", 40)
            time.sleep(0.05)
        handle.kill()
        self._cluster.settle()

    def close(self) -> None:
        self._cluster.stop()
        self._launcher.close()


@pytest.fixture(scope="session")
def verl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verl]:
    if sys.platform != "linux":
        pytest.skip("the warm host is for Linux")
    verl = Verl(tmp_path_factory.mktemp("verl"))
    try:
        yield verl
        verl.close()
        assert marked_processes(verl.run_id) == []
    finally:
        kill_marked(verl.run_id)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    """Problems without their answers: all that this stage is given."""
    directory = tmp_path_factory.mktemp("prompts")
    rows = pq.read_table(write_problems(directory / "problems.parquet", 32)).to_pylist()
    for row in rows:
        row["reward_model"]["ground_truth"] = ""
        assert set(row["extra_info"]) == {"index"}
    pq.write_table(pa.Table.from_pylist(rows), directory / "prompts.parquet")
    return directory / "prompts.parquet"


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """Decided enough to have something to teach."""
    return sharpen(write_model(tmp_path_factory.mktemp("teacher"), seed=7, hidden=64, layers=3), 3.0)


@pytest.fixture(scope="session")
def student(tmp_path_factory, teacher) -> Path:
    """Smaller than the teacher, and near it, as after a warmup."""
    return prune(teacher, tmp_path_factory.mktemp("student"))
