"""Turn a fork of the host into the requested process."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import os
import resource
import runpy
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from verl_s2d.platforms.cpu.warm.descendants import die_with_parent


def detach(host: int) -> None:
    """Give a new fork its own session and signal handlers, and tie its life to the host's. Signals are blocked."""
    die_with_parent(host)
    os.setsid()
    signal.set_wakeup_fd(-1)
    # The host's inherited signal dispositions (nohup, for example) are not those of this process.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(request: dict[str, Any], interpreter: Path) -> NoReturn:
    """Become the requested process and exit as it exits.

    Args:
        request: sent by `interpreter`; `received` has the descriptors here, `fds` their numbers in the sender.
        interpreter: path for sys.executable.
    """
    _exit(_outcome(request, interpreter))


def _outcome(request: dict[str, Any], interpreter: Path) -> int:
    """Run the program; return the interpreter's exit code, or the negative number of the signal to end by."""
    try:
        _become(request, interpreter)
        _execute(request["args"])
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _become(request: dict[str, Any], interpreter: Path) -> None:
    """Adopt the request's descriptors, limits, environment, directory and import path."""
    _adopt_descriptors(request["received"], request["fds"])
    soft, _ = request["open_files"]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.umask(request["umask"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    _open_streams(request["unbuffered"])
    added_path = request["env"].get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # the host's, if it has asked
    os.chdir(request["cwd"])
    # Children started through sys.executable or multiprocessing's spawn start warm as well.
    sys.executable = str(interpreter)
    if "multiprocessing.spawn" in sys.modules:
        sys.modules["multiprocessing.spawn"].set_executable(sys.executable)
    if "numpy" in sys.modules:  # the only preloaded generator that forks would share; `random` sees to itself
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    program = request["args"][0]
    head = {"-m": os.getcwd(), "-c": ""}.get(program, str(Path(program).resolve().parent))
    sys.path[:] = [head, *filter(None, added_path.split(":")), *(p for p in sys.path[1:] if p)]


def _execute(args: Sequence[str]) -> None:
    """Run `-m module`, `-c code` or a script as __main__."""
    program, *rest = args
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if program == "-m":
        sys.argv = list(rest)
        runpy._run_module_as_main(rest[0])
    elif program == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv = [program, *rest]
        main.__file__ = program
        exec(compile(Path(program).read_bytes(), program, "exec"), vars(main))


def _exit(outcome: int) -> NoReturn:
    """Exit as the interpreter does, but without tearing down the preloaded modules, which would take seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if outcome < 0:
        signal.signal(-outcome, signal.SIG_DFL)
        os.kill(os.getpid(), -outcome)
    os._exit(outcome)


def _adopt_descriptors(received: Sequence[int], wanted: Sequence[int]) -> None:
    """Give each received descriptor its number in the sender; close the standard descriptors that the sender closed."""
    above = max([*wanted, *received, 2]) + 1
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(parked, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    for number in {0, 1, 2} - set(wanted):
        with contextlib.suppress(OSError):
            os.close(number)


def _open_streams(unbuffered: bool) -> None:
    """Reopen the standard streams: the host's belong to its own descriptors and buffering."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        try:
            raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        except OSError:
            new = None
        else:
            direct = unbuffered and number > 0
            binary = raw if direct else io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
            new = io.TextIOWrapper(
                binary,
                encoding=old.encoding if old else "utf-8",
                errors=old.errors if old else "backslashreplace",
                line_buffering=number == 2 or raw.isatty(),
                write_through=direct,
            )
            new.mode = "r" if number == 0 else "w"
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
