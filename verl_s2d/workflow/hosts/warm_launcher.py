"""Start processes as forks of a warm interpreter (verl_s2d.platforms.cpu.warm)."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from verl_s2d.platforms.cpu.warm.preload import MODULES
from verl_s2d.workflow.hosts.process import Handle, SubprocessLauncher

_READY_SECONDS = 180
_CLOSE_SECONDS = 15


class WarmLauncher:
    """A launcher whose Python processes are forks of a host that has done the imports.

    The host starts with the first process, and again if it has died. Without a host, processes start cold: slower, but
    with the same result.

    Args:
        environment: environment of the host; has to be right for everything that is read at import time.
        log: output of the host.
        modules: modules that the host imports.
    """

    def __init__(self, environment: Mapping[str, str], log: Path, modules: Sequence[str] = MODULES):
        self._environment, self._log, self._modules = dict(environment), log, modules
        self._plain = SubprocessLauncher()
        self._host: subprocess.Popen | None = None
        self._directory: Path | None = None
        self._gave_up = False

    def start(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Handle:
        if argv[0] == sys.executable and (python := self._interpreter()) is not None:
            argv = [str(python), *argv[1:]]
        return self._plain.start(argv, env, cwd, log)

    def close(self) -> None:
        """End the host and everything that was started through it."""
        if self._host is not None:
            self._host.stdin.close()
            try:
                self._host.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._host.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._host.wait(10)
            self._host.stdout.close()
            self._host = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _interpreter(self) -> Path | None:
        if self._gave_up:
            return None
        if self._host is None or self._host.poll() is not None:
            self.close()
            self._start_host()
        return None if self._directory is None else self._directory / "python"

    def _start_host(self) -> None:
        # A short path: that of a Unix socket has at most 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="s2d-warm-", dir=self._environment.get("TMPDIR")))
        host = [sys.executable, "-m", "verl_s2d.platforms.cpu.warm.host"]
        argv = [*host, str(self._directory), "--preload", ",".join(self._modules)]
        with self._log.open("ab") as log:
            self._host = subprocess.Popen(
                argv,
                # Numerical libraries must not start threads before the forks.
                env=self._environment | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        if not self._ready():
            with self._log.open("a") as log:
                log.write(f"the warm host was not ready after {_READY_SECONDS} s, or ended; processes start cold\n")
            self._gave_up = True
            self.close()

    def _ready(self) -> bool:
        deadline = time.monotonic() + _READY_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._host.stdout, selectors.EVENT_READ)
            while time.monotonic() < deadline and self._host.poll() is None:
                if selector.select(timeout=0.5):
                    return os.read(self._host.stdout.fileno(), 64).startswith(b"ready")
        return False
