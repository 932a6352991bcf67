"""Keep a Python process that answers requests: started in a session of its own, without the owner's environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import verl_s2d

_KILLED_SECONDS = 5.0
_CODE = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
importlib.import_module(sys.argv[2]).main(*map(json.loads, sys.argv[3:]))
"""


class HelperProcess:
    """A process that runs a module's `main` and ends at the end of its standard input.

    It sees this process's sys.path, no PYTHON* settings and no secrets. A fixed hash seed makes sympy's order of terms
    deterministic.

    Args:
        arguments: of `main`, which JSON can hold.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, module: str, *arguments: Any) -> None:
        paths = [str(Path(verl_s2d.__file__).resolve().parent.parent), *(p for p in sys.path if p)]
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-c", _CODE, json.dumps(paths), module, *map(json.dumps, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.stdin, self.stdout = self._popen.stdin, self._popen.stdout

    def close(self, seconds: float) -> None:
        """End its input, kill its session if it has not ended after so long, and reap it."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            # A process that survives SIGKILL waits for a disk; init will reap it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_KILLED_SECONDS)
        self.stdout.close()

    def forget(self) -> None:
        """Close the pipes in a forked copy of the owner, without ending the process, which the original still uses."""
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        # Popen's destructor would wait for a process that is not our child.
        self._popen.returncode = 0
