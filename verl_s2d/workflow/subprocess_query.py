"""A question to a process of its own, because importing verl takes ten seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

_LIMIT_SECONDS = 600
"""Ten seconds where files are near; minutes from a network's file system that has not read them yet."""
_END_SECONDS = 10


class Probe:
    """Starts the question when made; `answer` waits for it. Use it as a context manager: leaving it ends the process
    if it still runs.

    Args:
        arguments: of Python; the last line `S2D <json>` that the process prints is its answer.
        environment: of the process; None for this one's.
        question: what it can read from standard input, as JSON.
        what: what the process does, for a message that it failed.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None,
        question: Any = None,
        *,
        what: str = "import verl",
    ):
        self._what = what
        with tempfile.TemporaryFile("w+") as given:
            json.dump(question, given, default=str)
            given.seek(0)
            self._process = subprocess.Popen(
                # -P: a directory called verl in the working directory must not be taken for the package.
                [sys.executable, "-P", *arguments],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=None if environment is None else dict(environment),
                text=True,
                start_new_session=True,
            )
        self._answer: tuple[Any, str] | None = None

    def answer(self) -> tuple[Any, str]:
        """(what the process said, ""), or (None, why it said nothing)."""
        if self._answer is None:
            self._answer = self._wait()
        return self._answer

    def _wait(self) -> tuple[Any, str]:
        try:
            out, err = self._process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._end()
            return None, f"{self._what} (process {self._process.pid}) did not end within {_LIMIT_SECONDS} s"
        line = next((x for x in reversed(out.splitlines()) if x.startswith("S2D ")), None)
        return (None, f"{self._what} failed:\n{err[-2000:]}") if line is None else (json.loads(line[4:]), "")

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._end()

    def _end(self) -> None:
        """With its session: a child that held the pipes would keep us waiting."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_END_SECONDS)
