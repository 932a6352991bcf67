"""Talk to one sandbox server: start it, send it a run, wait for the result, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import verl_s2d
from verl_s2d.sandbox.program import Result

_START_SECONDS = 600.0
"""Time to start Python and import the function, far longer than on an idle machine."""
_RUN_SECONDS, _RUN_FACTOR = 400.0, 110.0
"""Outer limit of a run, above that of its server: a constant, and a factor of the run's processor time."""
_GRACE_SECONDS = 5.0
_COMMAND = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from verl_s2d.sandbox.box_server import main
main(json.loads(sys.argv[2]))
"""


class ServerGone(Exception):
    """The server does not start, was killed, does not answer, or could not make a box."""


class FunctionMissing(Exception):
    """The server's function does not load."""


class BoxClient:
    """Client of one server process. Used by one thread at a time."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    def run(self, request: Mapping[str, Any], seconds: float) -> Result:
        """Run a program within `seconds` of processor time. Raises ServerGone or FunctionMissing."""
        try:
            if self._popen is None:
                self._start()
            deadline = time.monotonic() + _RUN_SECONDS + _RUN_FACTOR * seconds
            reply = self._exchange(json.dumps(request).encode() + b"\n", deadline)
        except ServerGone:
            self.close()
            raise
        if "failed" in reply:
            raise ServerGone(reply["failed"])
        return Result(**reply["result"])

    def close(self) -> None:
        """End the server, and the run that is under way with it."""
        popen, self._popen = self._popen, None
        if popen is None:
            return
        with contextlib.suppress(OSError):
            popen.stdin.close()
        try:
            popen.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            # A process that survives SIGKILL waits for a disk; init will reap it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(_GRACE_SECONDS)
        popen.stdout.close()

    def forget(self) -> None:
        """Close the pipes in a forked copy of the owner, without ending the server, which the original still uses."""
        popen, self._popen = self._popen, None
        if popen is not None:
            for pipe in (popen.stdin, popen.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            # Popen's destructor would wait for a process that is not our child.
            popen.returncode = 0

    def _start(self) -> None:
        paths = [str(Path(verl_s2d.__file__).resolve().parent.parent), *(p for p in sys.path if p)]
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-c", _COMMAND, json.dumps(paths), json.dumps(self._settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerGone(f"its server does not start: {error}") from error
        for pipe in (self._popen.stdin, self._popen.stdout):
            os.set_blocking(pipe.fileno(), False)
        reply = self._exchange(b"", time.monotonic() + _START_SECONDS)
        if "error" in reply:
            self.close()
            raise FunctionMissing(reply["error"])

    def _exchange(self, request: bytes, deadline: float) -> dict[str, Any]:
        """Send a request and return the reply. Raises ServerGone at the deadline and at the stream's end."""
        stdin, stdout = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        if request:
            poll.register(stdin, select.POLLOUT)
        unsent, received = memoryview(request), bytearray()
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(left, 0.0) * 1000))
            if not ready:
                raise ServerGone("its server does not answer")
            try:
                if stdin in ready:
                    unsent = unsent[os.write(stdin, unsent) :]
                    if not unsent:
                        poll.unregister(stdin)
                if stdout in ready:
                    read = os.read(stdout, 1 << 16)
                    if not read:
                        raise ServerGone("its server was killed")
                    received += read
            except OSError as error:
                raise ServerGone(f"its server was killed: {error}") from error
        return json.loads(received)
