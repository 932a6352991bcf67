"""Handle Ctrl-C, SIGTERM and SIGHUP during a run."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

from verl_s2d.workflow import save_request
from verl_s2d.workflow.failures import Interrupted

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Install the signal handlers of a run; use it as a context manager.

    Schedulers send SIGTERM before they take a machine back: a training stage is then asked to save at the end of its
    step and to stop. Further SIGTERMs are ignored, as some senders send two. Every other signal stops the run at once:
    `Interrupted` is raised in the main thread, and later signals are ignored during the stop. Stages of other threads
    end by their `check`.

    Args:
        grace_seconds: time for a stage to save and stop; with 0, SIGTERM stops at once.
    """

    def __init__(self, grace_seconds: float, note: Callable[[str], None]):
        self._grace, self._note = grace_seconds, note
        self._running: dict[int, Path | None] = {}
        """Thread -> where its stage can save."""
        self._deadline: float | None = None
        self._stopped = False
        self._told = False
        self._before: dict = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._signalled) for number in _NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def may_save(self, checkpoints: Path | None) -> Iterator[None]:
        """Enter this while a stage runs that can save into `checkpoints` on request; None: the stage cannot.

        Raises:
            Interrupted: on every exit after a request: the run stops.
        """
        if checkpoints is not None:
            save_request.withdraw(checkpoints)
        self._running[threading.get_ident()] = checkpoints
        try:
            yield
        finally:
            self._running[threading.get_ident()] = None
            if self._deadline is not None:
                raise Interrupted(signal.SIGTERM)

    def check(self) -> None:
        """Check for a request and its deadline; call this regularly while a stage runs.

        Raises:
            Interrupted: the run stops, and this thread's stage cannot save, or still runs at the deadline.
        """
        if self._stopped or (self._deadline is not None and self._running.get(threading.get_ident()) is None):
            raise Interrupted(signal.SIGTERM)
        if self._deadline is None:
            return
        if not self._told:
            self._told = True
            self._note(f"SIGTERM: the stage may end its step and save (cluster.grace_seconds = {self._grace:g})")
        if time.monotonic() > self._deadline:
            self._note("it has not, so it is stopped; it resumes from its last checkpoint")
            raise Interrupted(signal.SIGTERM)

    def stop_all(self) -> None:
        """Stop the stages of all threads, each at its next check."""
        self._stopped = True

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # No output here: the signal may interrupt a print.
        if number == signal.SIGTERM and self._deadline is not None:
            return
        savable = [checkpoints for checkpoints in self._running.values() if checkpoints is not None]
        if number == signal.SIGTERM and self._grace > 0 and savable:
            with contextlib.suppress(OSError):  # on a full disk no checkpoint would be written either
                for checkpoints in savable:
                    save_request.ask(checkpoints)
                self._deadline = time.monotonic() + self._grace
                return
        for other in _NUMBERS:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)
