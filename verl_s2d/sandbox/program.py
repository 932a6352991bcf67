"""Define a program to run, its limits, and the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Ending = Literal["ended", "time", "memory", "output"]
"""Why a run is over: the program ended by itself, or a limit ended it."""


@dataclass(frozen=True)
class RunLimits:
    """RunLimits of one run: of all processes of the program together, unless it says otherwise.

    Attributes:
        seconds: processor time. A program that sleeps is ended after WALL_FACTOR times as long, and WALL_SECONDS.
        memory_mb: resident memory; also the address space of each process.
        processes: processes and threads at once.
        disk_mb: files in the program's directory, which are memory too.
        output_kb: standard output and standard error, each.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    processes: int = 16
    disk_mb: int = 16
    output_kb: int = 4096


DEFAULT_LIMITS = RunLimits()
WALL_FACTOR, WALL_SECONDS = 2.0, 5.0
"""Time in which a program may sleep or compute, time that it waited for a processor not counted."""


@dataclass(frozen=True)
class Program:
    """A Python program.

    Attributes:
        source: text of the program, run as `__main__`.
        stdin: text of its standard input.
        files: further files in its directory, by name.
    """

    source: str
    stdin: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Attributes:
        ending: the program ended by itself, or the limit that ended it.
        status: exit status of a program that ended by itself, minus the signal that killed it; None after a limit.
        stdout, stderr: what it wrote, cut at the limit of output.
        seconds: processor time.
    """

    ending: Ending
    status: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Report whether the program ended by itself, with status 0."""
        return self.ending == "ended" and self.status == 0

    def reason(self) -> str:
        """Describe the ending in a few words."""
        if self.ending != "ended":
            return f"limit of {self.ending}"
        if self.status is not None and self.status < 0:
            return f"killed by signal {-self.status}"
        last = self.stderr.strip().splitlines()[-1:] or ["no message"]
        return "ended" if self.status == 0 else f"exit status {self.status}: {last[0][:200]}"


DIRECTORY = "/box"
"""The program's own directory: its working directory, its home and its temporary directory."""

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/bin:/bin",
    "HOME": DIRECTORY,
    "TMPDIR": DIRECTORY,
    "LANG": "C.UTF-8",
    # Equal programs have equal verdicts.
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Numerical libraries would start a thread for each processor of the machine.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment of a program: nothing of the machine's."""

MAIN = "main.py"
START = (
    "import builtins, sys; builtins.exit = builtins.quit = sys.exit; sys.argv[:] = ['main.py']; "
    "del builtins, sys; exec(compile(open('main.py', encoding='utf-8').read(), 'main.py', 'exec'))"
)
"""Runs main.py as `__main__`. Python starts in half the time without its module site, which defines exit and quit."""


def command(python: str) -> Sequence[str]:
    """Return the command of a program."""
    return [python, "-P", "-s", "-S", "-c", START]
