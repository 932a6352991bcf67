"""Exceptions for a failed or interrupted build; bad input is `verl_s2d.errors.UserError`."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path

from verl_s2d import redaction


class StageFailed(Exception):
    """A stage's process ended badly, stalled, or left an incomplete result.

    Args:
        problem: one sentence.
        log: the log that explains the failure.
        lines: the lines of `log` to show.
        others: further logs to name.
    """

    def __init__(
        self, problem: str, *, log: Path | None = None, lines: list[str] | None = None, others: Iterable[Path] = ()
    ):
        # The message may be shown anywhere, and a log may contain secrets.
        redactor = redaction.current()
        self.problem, self.log, self.lines = redactor.text(problem), log, list(map(redactor.text, lines or ()))
        text = [self.problem]
        if self.lines:
            text += [f"  | {line}" for line in self.lines]
        if log is not None:
            text.append(f"  whole log: {log}")
        text += [f"  the stage's own log: {other}" for other in others]
        super().__init__("\n".join(text))


class Interrupted(BaseException):
    """Raised on Ctrl-C or SIGTERM. Like KeyboardInterrupt not an Exception, so that no handler swallows it.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)
