"""Stand in for `python`: ask the host to fork, then mirror the fork.

`write_interpreter` puts a copy of this file, with its two constants filled in, beside the host's socket. It runs with
`-S -E` and imports only small modules, so it costs a few milliseconds. It becomes the ordinary interpreter if the host
does not fork, or when the command line needs more than a fork can do.

Protocol: it sends 8 bytes of length and a JSON object whose first bytes carry its file descriptors. The host answers
`+` once the fork exists, and two bytes when the fork ends: the signal that killed it (or 0) and its exit code. In
between, every byte sent is a signal to forward, and the end of the connection is the death of this process.
"""

import array
import contextlib
import json
import os
import resource
import signal
import socket
import stat
import sys

SOCKET = ""
PYTHON = ""
# Flags that a fork can honour.
UNBUFFERED = "-u"
HARMLESS = {UNBUFFERED, "-B", "-s"}
DESCRIPTORS_A_MESSAGE = 250
"""Linux passes at most 253."""
ANSWER_SECONDS = 60
"""Limit for the fork. A slower host counts as dead; it kills a fork whose client has closed the connection."""
RUN_SCRIPT = (
    "import runpy, sys; sys.executable = {executable!r}; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Run `sys.argv` in a fork of the host and exit as it exits."""
    args, unbuffered = sys.argv[1:], bool(os.environ.get("PYTHONUNBUFFERED"))
    while args and args[0] in HARMLESS:
        unbuffered = unbuffered or args[0] == UNBUFFERED
        args = args[1:]
    if not is_program(args):
        become_python(sys.argv[1:])
    if is_ray_daemon(args[0]):
        # A daemon keeps this file as its sys.executable, with which it starts workers.
        become_python(["-u", "-c", RUN_SCRIPT.format(executable=os.path.abspath(sys.argv[0])), *args])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The program may install handlers and report readiness before this process can forward signals.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    host, fds = ask(args, unbuffered)
    if host is None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become_python(sys.argv[1:])
    mirror(host, fds, mask)


def is_program(args: list) -> bool:
    """Report whether the arguments start with `-c code`, `-m module` or a script."""
    if not args or args[0].startswith("-"):
        return len(args) > 1 and args[0] in ("-c", "-m")
    return os.path.isfile(args[0])


def is_ray_daemon(script: str) -> bool:
    """Report whether this is one of Ray's agents or monitors, which end when their parent is not the raylet."""
    return "/site-packages/ray/" in script and "/ray/_private/workers/" not in script


def ask(args: list, unbuffered: bool) -> tuple:
    """Ask the host to fork; return (connection, descriptors sent), or (None, []) when it does not."""
    host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd != host.fileno() and is_open(fd)]
    os.umask(umask := os.umask(0))
    request = json.dumps(
        {
            "args": args,
            "env": dict(os.environ),
            "cwd": os.getcwd(),
            "fds": fds,
            "unbuffered": unbuffered,
            "umask": umask,
            "ignored": [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN],
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
    ).encode()
    parts = [fds[i : i + DESCRIPTORS_A_MESSAGE] for i in range(0, len(fds), DESCRIPTORS_A_MESSAGE)]
    host.settimeout(ANSWER_SECONDS)
    try:
        host.connect(SOCKET)
        host.sendall(len(request).to_bytes(8, "big"))
        for i, part in enumerate(parts):
            host.sendmsg([request[i : i + 1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", part))])
        host.sendall(request[len(parts) :])
        if host.recv(1) == b"+":
            host.settimeout(None)
            return host, fds
    except OSError:
        pass
    host.close()
    return None, []


def mirror(host: socket.socket, fds: list, mask: set) -> None:
    """Forward signals until the fork ends, then end the same way. On entry they are blocked; `mask` is the old mask."""

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            host.sendall(bytes([number]))  # no limit: one byte, into an empty buffer

    # Also signals that are ignored here: the fork ignores them too, until its program changes that.
    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # The fork has its own copies; a pipe kept open here would hide the end of file from its reader.
    for fd in fds:
        os.close(fd)
    status = b""
    with contextlib.suppress(OSError):
        # no limit: this process lives as long as its fork, as the fork would under its own pid
        status = host.recv(2, socket.MSG_WAITALL)
    if len(status) < 2:
        os._exit(1)
    if status[0]:
        if status[0] != signal.SIGKILL:
            signal.signal(status[0], signal.SIG_DFL)
        os.kill(os.getpid(), status[0])
    os._exit(status[1])


def is_open(fd: int) -> bool:
    """Report whether a descriptor is worth passing on (the directory listing's own one is closed by now)."""
    try:
        return not stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError:
        return False


def become_python(args: list) -> None:
    """Replace this process by the ordinary interpreter."""
    os.execv(PYTHON, [PYTHON, *args])


if __name__ == "__main__":
    main()
