"""Compare answers in a pool of processes, each of which can be killed at any time.

Callers are threads of a reward worker. Each call takes a free process, waits for its reply until a deadline, and puts
the process back. A call is retried once if its process was killed from outside. It is not retried after it exceeded its
CPU time or memory or crashed the interpreter, because the same answer would do so again.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import verl_s2d
from verl_s2d.errors import UserError

Outcome = Literal["equal", "different", "raised", "timeout", "died"]

PROCESSES = 2
"""Processes per reward worker. verl runs several workers, and each process takes about 60 MB."""

_START_SECONDS = 120.0
"""Time to import sympy: a second on an idle machine, far longer while a hundred other processes start."""
_WALL_FACTOR = 4
"""Wall time limit of a call as a multiple of its CPU time limit, for a busy machine."""
_GRACE_SECONDS = 5.0
_FREE_SECONDS = 1800.0
"""Time to wait for a free process: a hundred callers may all have answers that exceed their time."""
_COMMAND = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from verl_s2d.verifiers.verifier_process import main
main()
"""


class _Gone(Exception):
    """The process itself, not its child, no longer answers."""


class _Process:
    """Client of one verifier process. Used by one thread at a time."""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._requests = 0

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    def ask(self, truth: str, answer: str, seconds: float) -> Outcome:
        """Compare two answers. Raises _Gone, or UserError if the process does not start."""
        if self._popen is None:
            self._start()
        outcome: Outcome = "died"
        for _ in range(2):
            self._requests += 1
            request = {"id": self._requests, "truth": truth, "answer": answer, "seconds": seconds}
            self._send(request)
            outcome, signalled = self._outcome(time.monotonic() + _WALL_FACTOR * seconds)
            if outcome != "died" or signalled != signal.SIGKILL:
                break
        return outcome

    def close(self) -> None:
        """End the process and reap it."""
        popen, self._popen, self._unread = self._popen, None, b""
        if popen is None:
            return
        # An idle child ends at the end of its input, and its parent with it.
        with contextlib.suppress(OSError):
            popen.stdin.close()
        try:
            popen.wait(0.5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            # A process that survives SIGKILL waits for a disk; init will reap it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(_GRACE_SECONDS)
        popen.stdout.close()

    def forget(self) -> None:
        """Close the pipes in a forked copy of the owner, without ending the process, which the original still uses."""
        popen, self._popen = self._popen, None
        if popen is not None:
            for pipe in (popen.stdin, popen.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            # Popen's destructor would wait for a process that is not our child.
            popen.returncode = 0

    def _start(self) -> None:
        paths = [str(Path(verl_s2d.__file__).resolve().parent.parent), *(p for p in sys.path if p)]
        # Inherits no PYTHON* settings and no secrets. A fixed hash seed makes sympy's order deterministic.
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-c", _COMMAND, json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        try:
            reply = self._receive(time.monotonic() + _START_SECONDS)
        except _Gone:
            reply = None
        if reply and reply.get("ready"):
            return
        self.close()
        problem = reply["error"] if reply else "it ended, or did nothing for too long"
        missing = reply.get("missing") if reply else None
        raise UserError(
            f"The process of the math verifier does not start: {problem}.",
            key="verifier",
            value="math",
            remedy="pip install math-verify" if missing else "Import math_verify by hand to see where it fails.",
        )

    def _outcome(self, deadline: float) -> tuple[Outcome, int]:
        """Wait for the last request: (its outcome, the signal that ended the child or 0)."""
        killed = False
        while True:
            reply = self._receive(deadline)
            if reply is None:
                if killed:
                    raise _Gone
                # The child is blocked, or the machine is overloaded: let its parent replace it.
                killed, deadline = True, time.monotonic() + _GRACE_SECONDS
                os.kill(self._popen.pid, signal.SIGUSR1)
            elif "died" in reply:
                signalled = max(0, -reply["died"])
                timeout = killed or signalled in (signal.SIGPROF, signal.SIGXCPU)
                return ("timeout" if timeout else "died"), (0 if killed else signalled)
            elif reply["id"] == self._requests:
                if "raised" in reply:
                    return "raised", 0
                return ("equal" if reply["equal"] else "different"), 0

    def _send(self, request: dict[str, Any]) -> None:
        try:
            # Requests are far smaller than a pipe's buffer, so this does not block.
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise _Gone from error

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next reply, or None at the deadline (time.monotonic()). Raises _Gone at the end of the stream."""
        poll = select.poll()
        poll.register(self._popen.stdout, select.POLLIN)
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            read = os.read(self._popen.stdout.fileno(), 65536)
            if not read:
                raise _Gone
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)


class Pool:
    """A thread-safe pool of processes, which start on first use.

    Raises (from `compare`):
        UserError: math-verify is not installed, or its process does not start.
        TimeoutError: no process became free.
    """

    def __init__(self, processes: int = PROCESSES) -> None:
        self._all = [_Process() for _ in range(processes)]
        # Last in, first out: a single caller starts and warms only one process.
        self._free: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in reversed(self._all):
            self._free.put(process)

    def compare(self, truth: str, answer: str, seconds: float) -> Outcome:
        """Compare two answers, within `seconds` of CPU time."""
        try:
            process = self._free.get(timeout=_FREE_SECONDS)
        except queue.Empty:
            raise TimeoutError(
                f"none of the math verifier's processes {self.pids()} was free for {_FREE_SECONDS / 60:g} minutes"
            ) from None
        try:
            for _ in range(2):
                try:
                    return process.ask(truth, answer, seconds)
                except _Gone:
                    process.close()
            return "died"
        finally:
            self._free.put(process)

    def pids(self) -> list[int]:
        """List the pids of running processes."""
        return [process.pid for process in self._all if process.pid is not None]

    def close(self) -> None:
        """End all processes. The next call restarts them."""
        for process in self._all:
            process.close()

    def forget(self) -> None:
        for process in self._all:
            process.forget()


_pool: Pool | None = None
_lock = threading.Lock()


def shared() -> Pool:
    """Return this process's pool."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool()
            atexit.register(_pool.close)
        return _pool


def _after_fork() -> None:
    global _pool, _lock
    _lock = threading.Lock()
    if _pool is not None:
        # The pool's processes still serve the original process.
        _pool.forget()
        _pool = None


os.register_at_fork(after_in_child=_after_fork)
