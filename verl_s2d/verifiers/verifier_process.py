r"""Compare answers in a separate process, which imports math-verify once and forks a child that may die.

    python -P -s -S -c "..." (see process_client.py)  requests on stdin, replies on stdout, one JSON object per line

    {"id": 7, "truth": TeX, "answer": TeX, "seconds": 2.0}  ->  {"id": 7, "equal": true}
                                                               {"id": 7, "raised": "MemoryError"}
                                                               {"died": -27}

The child reads requests itself. The kernel ends it when a call exceeds its CPU time, even inside C code (a profiling
timer whose signal is not handled), and limits its memory, files and processes. The parent waits for the child's end,
reports it, and forks another child from its own warm state within milliseconds.

sympy evaluates strings as Python in many places (sympify, lambdify). The child therefore has an audit hook, which no
Python code can remove, and which refuses to run code made from text, start programs, write files and connect.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
from types import CodeType
from typing import Any

MEGABYTES = 1024
"""Address space of the child."""
MAX_REQUESTS = 2_000
"""Requests after which the child is replaced, because sympy's caches grow."""
MAX_RESIDENT_MEGABYTES = 384
"""Resident memory above which the child is replaced after a call."""

CLOSED = 3
"""Exit status of a child that found its input closed."""

_REFUSED_EVENTS = (
    *("socket.", "subprocess.", "ctypes.dlopen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.kill", "shutil."),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Import, warm up, reply {"ready": true} or {"error": ...}; then keep a child alive until stdin is closed."""
    replies = os.dup(1)
    # Output of libraries must not mix with replies.
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        from verl_s2d.verifiers.math import equivalence

        equivalence.warm_up()
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        _reply(replies, {"error": f"{type(error).__name__}: {error}", "missing": missing})
        return
    gc.collect()
    gc.freeze()
    children = [0]
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(children[0], signal.SIGKILL) if children[0] else None)
    _reply(replies, {"ready": True})
    while True:
        children[0] = child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os._exit(_serve(equivalence.agree, replies))
            os._exit(1)
        # no limit: the child's life, which its calls' timers, its owner's SIGUSR1 or the end of its input end
        _, status = os.waitpid(child, 0)
        children[0] = 0
        code = os.waitstatus_to_exitcode(status)
        if code == CLOSED:
            return
        if code != 0:
            _reply(replies, {"died": code})


def _serve(agree: Any, replies: int) -> int:
    """Answer requests until the child should be replaced (0) or its input ends (CLOSED)."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _confine()
    requests = os.fdopen(0, "rb", closefd=False)
    for _ in range(MAX_REQUESTS):
        line = requests.readline()  # no limit: idle until there is a request or its owner has gone
        if not line:
            return CLOSED
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            reply = {"id": request["id"], "equal": agree(request["truth"], request["answer"])}
        except Exception as error:
            reply = {"id": request["id"], "raised": type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, reply)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MAX_RESIDENT_MEGABYTES * 1024:
            return 0
    return 0


def _confine() -> None:
    """Restrict the child for good: limited memory, no file writes, no processes, few descriptors, no code from text."""
    # The signal follows the end of the thread that forked, and the parent has only one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for limit, value in (
        (resource.RLIMIT_AS, MEGABYTES << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        # A child's total; every call has a limit of its own.
        (resource.RLIMIT_CPU, 3600),
    ):
        resource.setrlimit(limit, (value, value))
    # Enough for the nesting that answer_limits allows, at about twenty frames of the parser per level.
    sys.setrecursionlimit(5_000)
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "exec":
        code = arguments[0]
        # Imported modules come from files; code made from text is named <string>, <lambdifygenerated-1> and so on.
        name = code.co_filename if isinstance(code, CodeType) else ""
        if name.startswith("<") and not name.startswith("<frozen"):
            raise PermissionError("code made from text")
    elif event == "open":
        flags = arguments[2]
        if isinstance(flags, int) and flags & _WRITING:
            raise PermissionError("a file opened for writing")
    elif event.startswith(_REFUSED_EVENTS):
        raise PermissionError(event)


def _reply(descriptor: int, reply: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(reply).encode() + b"\n")
