"""Make a box: three processes, of which the last one becomes the program.

    server -> outer: leaves the machine's namespaces, mounts the new root
                -> first: process 1 of the box; when it ends, the kernel ends every process of the box
                     -> program: gives up its rights, takes its limits, starts Python

Without isolation the three share the machine, and the server ends what descends from them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from verl_s2d.sandbox import libc, namespaces, syscall_filter
from verl_s2d.sandbox.program import DIRECTORY, ENVIRONMENT, RunLimits, command

_PYTHON = os.path.realpath(sys.executable)
"""The interpreter itself: boxes do not show the virtual environment that links to it."""


class BoxFailed(Exception):
    """A box could not be made or was ended from outside, for no fault of its program."""


@dataclass
class Box:
    """A running box, as its server sees it.

    Attributes:
        outer: process id of the outer process.
        stdout, stderr: pipes from the program.
        messages: pipe from the three processes before the program starts, lines of "P<pid of first>", "S<wait status of
            the program>" or "E<error>".
        directory: the program's directory on the machine, without isolation; None with it.
    """

    outer: int
    stdout: int
    stderr: int
    messages: int
    directory: str | None

    def close(self) -> None:
        """Close the pipes, and remove the directory."""
        for descriptor in (self.stdout, self.stderr, self.messages):
            os.close(descriptor)
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True)
class Job:
    """One run: a program, or the server's function with arguments."""

    files: Mapping[str, str]
    stdin: str
    limits: RunLimits
    isolated: bool = True
    visible: tuple[str, ...] = ()
    function: Callable[..., Any] | None = None
    arguments: Mapping[str, Any] | None = None


def start(job: Job) -> Box:
    """Start a box. Raises BoxFailed."""
    try:
        return _start(job)
    except OSError as error:
        raise BoxFailed(str(error)) from error


def _start(job: Job) -> Box:
    directory = None if job.isolated else tempfile.mkdtemp(prefix="verl-s2d-box-")
    stdin = os.memfd_create("stdin")
    pipes = [os.pipe() for _ in range(5)]
    (stdout, stdout_in), (stderr, stderr_in), (messages, messages_in), (left, left_in), (mapped, mapped_in) = pipes
    kept = (stdout, stderr, messages)
    try:
        with open(os.dup(stdin), "wb") as file:
            file.write(job.stdin.encode("utf-8", "surrogateescape"))
        os.lseek(stdin, 0, os.SEEK_SET)
        outer = os.fork()
        if outer == 0:
            streams = (stdin, stdout_in, stderr_in)
            os.close(mapped_in)
            _in_child(messages_in, lambda: _outer(job, directory, streams, messages_in, left_in, mapped))
        os.close(left_in)
        pipes[3] = (left, -1)
        # no limit: ends when the outer process has left, or has ended
        if os.read(left, 1):
            namespaces.map_users(outer)
        os.write(mapped_in, b".")
        return Box(outer, *kept, directory)
    except OSError:
        kept = ()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        for descriptor in {stdin, *(end for pipe in pipes for end in pipe)} - {*kept, -1}:
            os.close(descriptor)


def _outer(
    job: Job, directory: str | None, streams: tuple[int, int, int], messages: int, left: int, mapped: int
) -> NoReturn:
    os.setsid()
    if not job.isolated:
        os.close(left)
    else:
        namespaces.leave()
        os.write(left, b".")
        os.close(left)
        # no limit: the server maps the users next, or has ended
        if not os.read(mapped, 1):
            os._exit(1)
        namespaces.change_root(job.limits.disk_mb, job.visible)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    told, tell = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(tell)
        _in_child(messages, lambda: _first(job, directory, streams, messages, told))
    for stream in streams:
        os.close(stream)
    os.write(messages, f"P{first}\n".encode())
    os.write(tell, b".")
    # no limit: the server ends the first process at the limits of its program
    os.waitpid(first, 0)
    os._exit(0)


def _first(job: Job, directory: str | None, streams: tuple[int, int, int], messages: int, told: int) -> NoReturn:
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    # no limit: the outer process tells the server of this one first, or has ended
    if not os.read(told, 1):
        os._exit(1)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    program = os.fork()
    if program == 0:
        _in_child(messages, lambda: _program(job, directory or DIRECTORY, streams))
    for stream in streams:
        os.close(stream)
    # Without isolation it remains the parent of what the program has left behind, until the server has ended that.
    with contextlib.suppress(ChildProcessError):
        while True:
            # no limit: the server ends this process at the limits of its program
            pid, status = os.waitpid(-1, 0)
            if pid == program:
                os.write(messages, f"S{status}\n".encode())
                if job.isolated:
                    break
    os._exit(0)


def _program(job: Job, directory: str, streams: tuple[int, int, int]) -> NoReturn:
    os.setsid()
    if job.isolated:
        namespaces.become_nobody()
    os.chdir(directory)
    os.umask(0o077)
    for name, text in job.files.items():
        with open(name, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for one in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(one, signal.SIG_DFL)
    _limit(job)
    environment = {**ENVIRONMENT, "HOME": directory, "TMPDIR": directory}
    if libraries := namespaces.libraries():
        environment["PYTHONPATH"] = os.pathsep.join(libraries)
    if job.function is not None:
        os.environ.clear()
        os.environ.update(environment)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if job.isolated:
            syscall_filter.install()
        _call(job.function, job.arguments or {})
    if job.isolated:
        syscall_filter.install()
    os.execve(_PYTHON, command(_PYTHON), environment)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> NoReturn:
    """Write the function's result to standard output as JSON; what it prints goes to standard error."""
    result = os.dup(1)
    os.dup2(2, 1)
    try:
        reply = json.dumps(function(**arguments))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    with open(result, "w") as file:
        file.write(reply)
    os._exit(0)


def _limit(job: Job) -> None:
    limits = job.limits
    seconds = math.ceil(limits.seconds) + 1
    # Outer and first process may have the same user.
    processes = limits.processes + 2
    for which, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits.memory_mb << 20),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits.disk_mb << 20),
        (resource.RLIMIT_STACK, min(limits.memory_mb << 20, 256 << 20)),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _in_child(messages: int, action: Callable[[], NoReturn]) -> NoReturn:
    """Run a forked process; an error goes to the server, and the process never returns to the server's code."""
    try:
        action()
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        os.write(messages, f"E{text}\n".encode())
    finally:
        os._exit(1)
