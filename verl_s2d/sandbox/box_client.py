"""Talk to one sandbox server: start it, send it a run, wait for the result, end it."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from typing import Any

from verl_s2d.platforms.helper_process import HelperProcess
from verl_s2d.sandbox.program import Result

_START_SECONDS = 600.0
"""Time to start Python and import the function, far longer than on an idle machine."""
_RUN_SECONDS, _RUN_FACTOR = 400.0, 110.0
"""Outer limit of a run, above that of its server: a constant, and a factor of the run's processor time."""
_GRACE_SECONDS = 5.0
_SERVER = "verl_s2d.sandbox.box_server"


class ServerGone(Exception):
    """The server does not start, was killed, does not answer, or could not make a box."""


class FunctionMissing(Exception):
    """The server's function does not load."""


class BoxClient:
    """Client of one server process. Used by one thread at a time."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._process: HelperProcess | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def run(self, request: Mapping[str, Any], seconds: float) -> Result:
        """Run a program within `seconds` of processor time. Raises ServerGone or FunctionMissing."""
        try:
            if self._process is None:
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
        process, self._process = self._process, None
        if process is not None:
            process.close(_GRACE_SECONDS)

    def forget(self) -> None:
        """Leave the server to the process that this one was forked from."""
        process, self._process = self._process, None
        if process is not None:
            process.forget()

    def _start(self) -> None:
        try:
            self._process = HelperProcess(_SERVER, self._settings)
        except OSError as error:
            raise ServerGone(f"its server does not start: {error}") from error
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)
        reply = self._exchange(b"", time.monotonic() + _START_SECONDS)
        if "error" in reply:
            self.close()
            raise FunctionMissing(reply["error"])

    def _exchange(self, request: bytes, deadline: float) -> dict[str, Any]:
        """Send a request and return the reply. Raises ServerGone at the deadline and at the stream's end."""
        stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
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
