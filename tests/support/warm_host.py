"""A warm host that has imported next to nothing, so that a test takes milliseconds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Host:
    """A running host; `run` and `start` take what would follow `python` on a command line."""

    def __init__(self, directory: Path, preload: str = "random", **environment: str):
        directory.mkdir(parents=True, exist_ok=True)
        self.python = directory / "python"
        self.socket = directory / "socket"
        self.log = directory / "host.log"
        argv = [sys.executable, "-m", "verl_s2d.platforms.cpu.warm.host", str(directory), "--preload", preload]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        assert self.process.stdout.readline().startswith(b"ready"), self.log.read_text()

    def run(self, *args: str, **options) -> subprocess.CompletedProcess:
        options = {"capture_output": True, "text": True, "timeout": 30, "stdin": subprocess.DEVNULL} | options
        return subprocess.run([str(self.python), *args], **options)

    def start(self, *args: str, **options) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True} | options
        return subprocess.Popen([str(self.python), *args], **options)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


def alive(pid: int) -> bool:
    """Report whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait for a condition; whether it came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
