"""Query a separate Python process, because importing verl takes ten seconds."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_s2d.platforms.temporary_files import new_directory, temporary_files_in

_LIMIT_SECONDS = 600
"""Importing verl takes ten seconds from a local disk, and minutes from a cold network file system."""
_END_SECONDS = 10


def answering() -> Callable[[Any], None]:
    """Keep standard output for answers, and send all else that this process prints to standard error.

    Returns:
        The function that gives an answer: anything that JSON takes.
    """
    stream = os.fdopen(os.dup(1), "w")
    # The descriptor, too: libraries and child processes write to it.
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def answer(value: Any) -> None:
        print(f"S2D {json.dumps(value, default=str)}", file=stream, flush=True)

    return answer


class Probe:
    """A query that starts when constructed; `answer` waits for the result.

    Use it as a context manager: leaving it ends the process if it still runs.

    Args:
        arguments: Python's arguments. The answer is the line `S2D <json>` that the process prints; mappings on several
            such lines are joined, so that what a process knew before it failed is not lost.
        environment: the process's environment; None for this process's.
        question: sent to standard input as JSON.
        what: what the process does, for error messages.
        progress: the last argument becomes a file descriptor of this process's standard error, for lines to be seen.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None,
        question: Any = None,
        *,
        what: str = "import verl",
        progress: bool = False,
    ):
        self._what = what
        shown = [os.dup(2)] if progress else []
        self._temporary = new_directory()
        own = temporary_files_in(self._temporary.name)
        with tempfile.TemporaryFile("w+") as given:
            json.dump(question, given, default=str)
            given.seek(0)
            self._process = subprocess.Popen(
                # -P: a directory called verl in the working directory must not be taken for the package.
                [sys.executable, "-P", *arguments, *map(str, shown)],
                pass_fds=shown,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**(os.environ if environment is None else environment), **own},
                text=True,
                start_new_session=True,
            )
        for descriptor in shown:
            os.close(descriptor)
        self._answer: tuple[Any, str] | None = None

    def answer(self) -> tuple[Any, str]:
        """Wait for (answer, reason of the process's failure or ""); the answer is None when the process gave none."""
        if self._answer is None:
            self._answer = self._wait()
        return self._answer

    def _wait(self) -> tuple[Any, str]:
        try:
            out, err = self._process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._end()
            return None, f"{self._what} (process {self._process.pid}) did not end within {_LIMIT_SECONDS} s"
        answers = [json.loads(line[4:]) for line in out.splitlines() if line.startswith("S2D ")]
        failure = f"{self._what} failed:\n{err[-2000:]}" if self._process.returncode or not answers else ""
        return functools.reduce(operator.or_, answers) if answers else None, failure

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._end()
        self._temporary.cleanup()

    def _end(self) -> None:
        """End the process and its session: a child that holds the pipes would block this process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_END_SECONDS)
