"""The executable that looks like `python`: asks the host to fork, then mirrors the fork's life.

`write_interpreter` puts a copy of this file, with its two constants filled in, beside the host's socket. It runs with
`-S -E` and imports only small modules, so it costs a few milliseconds. When the host is gone, or a flag is used that a
fork cannot honour, it becomes the ordinary interpreter.
"""

import array
import json
import os
import signal
import socket
import stat
import sys

SOCKET = ""
PYTHON = ""
# Flags without effect on a process that has already started; every other flag means the ordinary interpreter.
HARMLESS = {"-u", "-B", "-s", "-E", "-I", "-P"}
RUN_SCRIPT = (
    "import runpy, sys; sys.executable = {executable!r}; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Run `sys.argv` in a fork of the host and exit as it exits."""
    args = sys.argv[1:]
    while args and args[0] in HARMLESS:
        args = args[1:]
    if not args or (args[0].startswith("-") and args[0] not in ("-c", "-m")):
        become_python(sys.argv[1:])
    if is_ray_daemon(args[0]):
        # It decides with which interpreter workers start.
        become_python(["-u", "-c", RUN_SCRIPT.format(executable=os.path.abspath(sys.argv[0])), *args])
    try:
        host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        host.connect(SOCKET)
    except OSError:
        become_python(sys.argv[1:])
    fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd != host.fileno() and is_open(fd)]
    request = json.dumps({"args": args, "env": dict(os.environ), "cwd": os.getcwd(), "fds": fds}).encode()
    host.sendall(len(request).to_bytes(8, "big"))
    host.sendmsg([request[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    host.sendall(request[1:])
    for number in FORWARDED:
        signal.signal(number, lambda number, _: host.sendall(bytes([number])))
    # The fork holds them now; a pipe kept open here would hide the end of the other side from it.
    for fd in fds:
        os.close(fd)
    status = host.recv(2)
    if len(status) < 2:
        os._exit(1)
    if status[0]:
        signal.signal(status[0], signal.SIG_DFL) if status[0] not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), status[0])
    os._exit(status[1])


def is_ray_daemon(script: str) -> bool:
    """Ray's agents and monitors end themselves when their parent is not the raylet; its workers do not look."""
    return "/site-packages/ray/" in script and "/ray/_private/workers/" not in script


def is_open(fd: int) -> bool:
    """Whether a descriptor is worth passing on (the directory listing's own one is closed by now)."""
    try:
        return not stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError:
        return False


def become_python(args: list) -> None:
    """Replace this process by the ordinary interpreter."""
    os.execv(PYTHON, [PYTHON, *args])


if __name__ == "__main__":
    main()
