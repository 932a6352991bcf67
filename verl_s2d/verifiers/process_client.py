"""Talk to one verifier process: start it, send it a comparison, wait for the outcome, end it."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import Any, Literal

from verl_s2d.errors import UserError
from verl_s2d.platforms.helper_process import HelperProcess

Outcome = Literal["equal", "different", "raised", "timeout", "died"]
"""`timeout` and `died` are no verdicts."""

_START_SECONDS = 600.0
"""Time to import sympy: a second on an idle machine, far longer while a hundred other processes start."""
_WALL_SECONDS, _WALL_FACTOR = 300.0, 100
"""Outer limit of a call in wall time, for a process that is stopped or blocked: a constant, and a factor of the call's
processor time."""
_GRACE_SECONDS = 5.0
_SERVER = "verl_s2d.verifiers.verifier_process"
_IDLE_SECONDS = 0.5
"""An idle process ends at the end of its input."""


class ProcessGone(Exception):
    """The process was killed or does not answer, for no fault of the answers."""


class VerifierClient:
    """Client of one verifier process. Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: HelperProcess | None = None
        self._unread = b""
        self._requests = 0
        self.started = False
        """It has been ready for requests since it was last started."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ask(self, truth: str, answer: str, seconds: float) -> Outcome | Literal["killed"]:
        """Compare two answers once. Raises ProcessGone, or UserError if math-verify is not installed."""
        if self._process is None:
            self._start()
        self._requests += 1
        self._send({"id": self._requests, "truth": truth, "answer": answer, "seconds": seconds})
        return self._outcome(time.monotonic() + _WALL_SECONDS + _WALL_FACTOR * seconds)

    def close(self) -> None:
        """End the process and reap it."""
        process, self._process, self._unread, self.started = self._process, None, b"", False
        if process is not None:
            process.close(_IDLE_SECONDS)

    def forget(self) -> None:
        """Leave the process to the one that this one was forked from."""
        process, self._process = self._process, None
        if process is not None:
            process.forget()

    def _start(self) -> None:
        try:
            self._process = HelperProcess(_SERVER)
        except OSError as error:
            raise ProcessGone(f"it does not start: {error}") from error
        reply = self._receive(time.monotonic() + _START_SECONDS)
        if reply is None:
            raise ProcessGone(f"it was not ready within {_START_SECONDS / 60:g} minutes")
        if reply.get("missing"):
            self.close()
            raise does_not_start(reply["error"], "pip install math-verify")
        if not reply.get("ready"):
            raise ProcessGone(reply["error"])
        self.started = True

    def _outcome(self, deadline: float) -> Outcome | Literal["killed"]:
        """Wait for the reply to the last request; `killed`: the process's child was, from outside."""
        overdue = False
        while True:
            reply = self._receive(deadline)
            if reply is None:
                if overdue:
                    raise ProcessGone("it does not react")
                # The child is stopped or blocked: let its parent replace it.
                overdue, deadline = True, time.monotonic() + _GRACE_SECONDS
                os.kill(self._process.pid, signal.SIGUSR1)
            elif "died" in reply:
                ended_by = -reply["died"]
                if overdue or ended_by in (signal.SIGPROF, signal.SIGXCPU):
                    return "timeout"
                if ended_by == signal.SIGKILL:
                    return "killed"
                return "died"
            elif reply["id"] == self._requests:
                if "raised" in reply:
                    return "raised"
                return "equal" if reply["equal"] else "different"

    def _send(self, request: dict[str, Any]) -> None:
        try:
            # Requests are far smaller than a pipe's buffer, so this does not block.
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ProcessGone("it was killed") from error

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next reply, or None at the deadline (time.monotonic()). Raises ProcessGone at the stream's end."""
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                raise ProcessGone("it was killed")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)


def does_not_start(problem: object, remedy: str) -> UserError:
    return UserError(
        f"The process of the math verifier does not start: {problem}.", key="verifier", value="math", remedy=remedy
    )
