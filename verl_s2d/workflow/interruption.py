"""What Ctrl-C, SIGTERM and SIGHUP do to a run."""

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
    """The signal handlers of a run, while it is entered.

    SIGTERM is how schedulers take a machine back, with notice: a stage that trains is asked to save at the end of its
    step and to stop (and further SIGTERMs are ignored: some senders send two). Everything else stops at once:
    `Interrupted` is raised in the main thread, once; then signals are ignored, because stopping is under way.

    Args:
        grace_seconds: how long a stage may take to save and stop; 0: SIGTERM stops at once.
    """

    def __init__(self, grace_seconds: float, note: Callable[[str], None]):
        self._grace, self._note = grace_seconds, note
        self._checkpoints: Path | None = None
        self._deadline: float | None = None
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
        """While a stage runs that can be asked to save into `checkpoints` (None: one that cannot).

        Raises:
            Interrupted: on leaving, however that happens, when it was asked to: the run is to stop.
        """
        if checkpoints is not None:
            save_request.withdraw(checkpoints)
        self._checkpoints = checkpoints
        try:
            yield
        finally:
            self._checkpoints = None
            if self._deadline is not None:
                raise Interrupted(signal.SIGTERM)

    def check(self) -> None:
        """To be called while a stage runs.

        Raises:
            Interrupted: the stage was asked to stop, and its time is over.
        """
        if self._deadline is None:
            return
        if not self._told:
            self._told = True
            self._note(f"SIGTERM: the stage may end its step and save (cluster.grace_seconds = {self._grace:g})")
        if time.monotonic() > self._deadline:
            self._note("it has not, so it is stopped; it will go on from its last checkpoint")
            raise Interrupted(signal.SIGTERM)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # Nothing is printed here: the signal may have come in the middle of printing.
        if number == signal.SIGTERM and self._deadline is not None:
            return
        if number == signal.SIGTERM and self._grace > 0 and self._checkpoints is not None:
            with contextlib.suppress(OSError):  # of a full disk; then there would be no checkpoint either
                save_request.ask(self._checkpoints)
                self._deadline = time.monotonic() + self._grace
                return
        for other in _NUMBERS:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)
