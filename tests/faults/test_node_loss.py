"""A node of a given Ray cluster is lost while a stage uses it: the stage starts again once a node is there."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.workflow.faults import manifests, nothing_half_written, running, write_recipe
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.workflow.hosts.process import kill_marked

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
_NODE = "S2D_TEST_NODE"
"""Environment variable by which the processes of a node are found."""


class Nodes:
    """Ray nodes with one logical GPU each, on this machine."""

    def __init__(self, directory: Path):
        self._directory, self._names = directory, []
        with socket.socket() as free:
            # Below the ports that Ray gives to its workers.
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{6000 + free.getsockname()[1] % 4000}"
        self.environment = stage_environment("cpu") | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.environment.pop("RAY_ADDRESS", None)

    def join(self, name: str, *how: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        with (self._directory / f"{name}.log").open("w") as log:
            subprocess.Popen(
                [*command, "--num-cpus=16", "--num-gpus=1", *(how or [f"--address={self.address}"])],
                env=self.environment | {_NODE: name},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._names.append(name)

    def lose(self, name: str) -> int:
        return kill_marked(name, _NODE)

    def close(self) -> None:
        for name in self._names:
            self.lose(name)


@pytest.mark.timeout(1800)
def test_a_stage_survives_the_loss_of_a_node(tmp_path, monkeypatch, fault):
    cluster = {"nodes": 2, "gpus_per_node": 1, "retries": 1, "wait_minutes": 5, "stall_minutes": 5}
    recipe, run_dir = write_recipe(tmp_path, rows=("direct-grpo",), cluster=cluster, micro_batch=8), tmp_path / "run"
    nodes = Nodes(tmp_path)
    # Unix sockets live below it, and their paths are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="s2d-ray-") as ray:
        try:
            port = nodes.address.rpartition(":")[2]
            nodes.join("head", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={ray}")
            time.sleep(10)
            nodes.join("first")
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
                monkeypatch.setenv(name, nodes.environment[name])
            monkeypatch.setenv("RAY_ADDRESS", nodes.address)
            with running(recipe, run_dir) as run:
                directory = run.wait_for("student-rl-all")
                run.until("a step", lambda: read_metrics(directory), limit=600)
                assert nodes.lose("first")
                fault("one of two nodes lost, another joins 30 s later", "student RL")
                run.until("it waits", lambda: "waiting for the Ray cluster" in run.output, limit=600)
                time.sleep(30)
                nodes.join("second")
                assert run.wait(900) == 0, run.output[-3000:]
                assert "Trying again" in run.output
            nothing_half_written(run_dir)
            manifest = manifests(run_dir)["student-rl-all"]
            assert manifest["attempts"] == 2 and manifest["ledger"]["updates"] == 4
        finally:
            nodes.close()
