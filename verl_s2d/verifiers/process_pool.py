"""Compare answers in a pool of processes, each of which can be killed at any time.

Callers are threads of a reward worker. Each call takes a free process, waits for its reply, and puts the process back.

A verdict must not depend on the machine's load, so the limit of a call is processor time:

| what ended the call | then |
|---|---|
| its processor time | repeated once in a fresh process, with twice the time as a busy processor is slower |
| a kill from outside, also while the process starts | repeated after a pause, up to KILLS times |
| a crash of the interpreter | not repeated: the same answer would crash it again |

A call that exceeds its limits, or crashes its process, is reported (unsettled.py) and counts as wrong. One whose
process was killed from outside every time, or did not start, is unscored (score.py).
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time

from verl_s2d.errors import Unscored
from verl_s2d.verifiers.process_client import Outcome, ProcessGone, VerifierClient
from verl_s2d.verifiers.unsettled import report_unsettled

PROCESSES = 2
"""Processes per reward worker. verl runs several workers, and each process takes about 60 MB."""

KILLS = 5
"""Repetitions of a call whose process was killed or did not start, after pauses of 0.1 s to 1.6 s."""

_PAUSE_SECONDS = 0.1


class Pool:
    """A thread-safe pool of processes, which start on first use."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._all = [VerifierClient() for _ in range(processes)]
        # Last in, first out: a single caller starts and warms only one process.
        self._free: queue.LifoQueue[VerifierClient] = queue.LifoQueue()
        for process in reversed(self._all):
            self._free.put(process)

    def compare(self, truth: str, answer: str, seconds: float) -> Outcome:
        """Compare two answers, within `seconds` of processor time, or twice that in a second attempt.

        Raises:
            Unscored: the process was killed from outside KILLS times more, or did not start.
            UserError: math-verify is not installed.
        """
        process = self._free.get()  # no limit: every caller before this one ends within its own limits
        try:
            outcome = self._compare(process, truth, answer, seconds)
        finally:
            self._free.put(process)
        if outcome in ("timeout", "died"):
            ended = f"exceeded {seconds:g} s and {2 * seconds:g} s" if outcome == "timeout" else "ended its process"
            report_unsettled(f"comparing {answer[:80]!r} with {truth[:80]!r} {ended}")
        return outcome

    def _compare(self, process: VerifierClient, truth: str, answer: str, seconds: float) -> Outcome:
        limit, problem = seconds, ""
        for kills in range(KILLS + 1):
            time.sleep(_PAUSE_SECONDS * 2 ** (kills - 1) if kills else 0)
            try:
                outcome = process.ask(truth, answer, limit)
                if outcome == "timeout" and limit == seconds:
                    limit = 2 * seconds
                    outcome = process.ask(truth, answer, limit)
                if outcome != "killed":
                    return outcome
                problem = "is killed from outside"
            except ProcessGone as error:
                problem = f"is lost: {error}" if process.started else f"does not start: {error}"
                process.close()
        raise Unscored(f"the process of the math verifier {problem} ({KILLS + 1} attempts); is there memory left?")

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
