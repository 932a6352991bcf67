"""The launcher that keeps a warm host: restarts a dead one, starts cold where none comes up."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.warm_host import alive, eventually
from verl_s2d.workflow.hosts import warm_launcher
from verl_s2d.workflow.hosts.process import wait
from verl_s2d.workflow.hosts.warm_launcher import WarmLauncher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the warm host is for Linux")

WARM = "import sys, os; print('verl_s2d.platforms.cpu.warm.host' in getattr(sys, 'orig_argv', []), os.getppid())"


@pytest.fixture
def launcher(tmp_path):
    launcher = WarmLauncher(os.environ, tmp_path / "warm.log", modules=("random",))
    yield launcher
    launcher.close()


def run(launcher: WarmLauncher, directory: Path, code: str = WARM) -> list[str]:
    log = directory / "log.txt"
    log.unlink(missing_ok=True)
    assert wait(launcher.start([sys.executable, "-c", code], os.environ, directory, log), 30) == 0, log.read_text()
    return log.read_text().split()


def test_processes_are_forks_of_one_host(launcher, tmp_path):
    first, second = run(launcher, tmp_path), run(launcher, tmp_path)
    assert first[0] == "True" and first == second


def test_other_programs_start_as_they_are(launcher, tmp_path):
    handle = launcher.start(["sh", "-c", "exit 9"], os.environ, tmp_path, tmp_path / "log.txt")
    assert wait(handle, 10) == 9
    assert not (tmp_path / "warm.log").exists(), "no host for it"


def test_a_dead_host_is_replaced(launcher, tmp_path):
    warm, host = run(launcher, tmp_path)
    os.kill(int(host), signal.SIGKILL)
    assert eventually(lambda: not alive(int(host)))
    again, other = run(launcher, tmp_path)
    assert (warm, again) == ("True", "True") and other != host


def test_kill_ends_the_fork_and_close_everything(launcher, tmp_path):
    code = (
        "import os, subprocess, time; subprocess.Popen(['sleep', '60']); print(os.getpid(), flush=True); time.sleep(60)"
    )
    log = tmp_path / "log.txt"
    handles = [launcher.start([sys.executable, "-c", code], os.environ, tmp_path, log) for _ in range(2)]
    assert eventually(lambda: len(log.read_text().split()) == 2)
    forks = list(map(int, log.read_text().split()))
    handles[0].kill()
    assert wait(handles[0], 10) == -signal.SIGKILL
    assert eventually(lambda: sum(map(alive, forks)) == 1)
    launcher.close()
    assert eventually(lambda: not any(map(alive, forks)))
    assert wait(handles[1], 10) == 1


@pytest.mark.parametrize("failing", ["ends", "hangs"])
def test_cold_where_the_host_does_not_come_up(tmp_path, monkeypatch, failing):
    (tmp_path / "broken.py").write_text(
        "import os; os._exit(3)" if failing == "ends" else "import time; time.sleep(60)"
    )
    monkeypatch.setattr(warm_launcher, "_READY_SECONDS", 2)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    launcher = WarmLauncher(environment, tmp_path / "warm.log", modules=("broken",))
    monkeypatch.setattr(warm_launcher, "_CLOSE_SECONDS", 1)
    try:
        assert run(launcher, tmp_path)[0] == "False"
        assert run(launcher, tmp_path)[0] == "False", "it is not tried again"
    finally:
        launcher.close()
