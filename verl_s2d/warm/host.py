"""The process that has done the imports: forks on request, and takes everything down with its owner.

    python -m verl_s2d.warm.host DIRECTORY --preload module,module

writes DIRECTORY/python (see `interpreter`), serves DIRECTORY/socket, and prints one line when it is ready. Its owner
holds the other end of its standard input; when that closes, for whatever reason (kill -9 included), every process that
descends from the host is killed. Linux only: it is the child subreaper of everything started through it.
"""

from __future__ import annotations

import argparse
import array
import atexit
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def write_interpreter(directory: Path) -> Path:
    """Write DIRECTORY/python, the executable that starts warm; returns its path."""
    source = Path(__file__).with_name("interpreter.py").read_text()
    source = source.replace('SOCKET = ""', f"SOCKET = {str(directory / 'socket')!r}")
    source = source.replace('PYTHON = ""', f"PYTHON = {sys.executable!r}")
    path = directory / "python"
    path.write_text(f"#!{sys.executable} -SE\n{source}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main() -> None:
    """Serve until the owner goes away. In a fork, `serve` returns what to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preload", default="", help="modules to import, comma separated")
    options = parser.parse_args()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # imports may print; standard output is for the one line that says ready
    _preload(filter(None, options.preload.split(",")))
    interpreter = write_interpreter(options.directory)
    server = Server(options.directory / "socket")
    with announce:
        announce.write(f"ready {interpreter}\n")
    request = server.serve()
    if request is not None:
        _exit(_exit_code(lambda: _run(request, interpreter)))


class _Postponed:
    """Keeps Ray out of the host: its C++ part reads a worker's own environment variables while it is being imported."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is imported by each fork itself")


def _preload(modules: Iterable[str]) -> None:
    """Import what can be imported; a module that cannot only costs its time again in each fork."""
    sys.meta_path.insert(0, _Postponed)
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            print(f"not preloaded: {module}: {error!r}", file=sys.stderr)
    sys.meta_path.remove(_Postponed)


class Server:
    """Accepts requests and forks; one connection lives as long as its fork."""

    def __init__(self, path: Path):
        self.selector = selectors.DefaultSelector()
        self.forks: dict[int, socket.socket] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(128)
        self.wakeup, wakeup = socket.socketpair()
        self.wakeup.setblocking(False)
        wakeup.setblocking(False)
        self._wakeup_end = wakeup
        signal.set_wakeup_fd(wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # A Ctrl-C on the owner's terminal is the owner's to handle.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for source in (self.listener, self.wakeup, sys.stdin):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> dict | None:
        """Loop in the host; return the request in each fork, None when the owner is gone."""
        while True:
            for key, _ in self.selector.select(timeout=5):
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    request = self._fork(connection)
                    if request is not None:
                        return request
                elif key.fileobj is self.wakeup:
                    self.wakeup.recv(4096)
                elif key.fileobj is sys.stdin:
                    if not os.read(0, 1):
                        _kill_descendants()
                        return None
                else:
                    self._signal(key.fileobj, key.data)
            self._reap()

    def _fork(self, connection: socket.socket) -> dict | None:
        connection.settimeout(10)
        try:
            request, fds = _receive(connection)
        except (OSError, ValueError):
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._leave()
            connection.close()
            request["received"] = fds
            return request
        for fd in fds:
            os.close(fd)
        self.forks[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, pid)
        return None

    def _leave(self) -> None:
        """In the fork: let go of everything that is the host's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        for end in (self.listener, self.wakeup, self._wakeup_end, *self.forks.values()):
            end.close()

    def _signal(self, connection: socket.socket, pid: int) -> None:
        """A byte is a signal to pass on; the end of the connection is the death of whoever asked for the fork."""
        try:
            number = connection.recv(1)
        except OSError:
            number = b""
        if not number:
            self.selector.unregister(connection)
        if pid in self.forks:
            os.kill(pid, number[0] if number else signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self.forks.pop(pid, None)
            if connection is None:  # an orphan of some fork, adopted as its subreaper
                continue
            code = os.waitstatus_to_exitcode(status)
            try:
                connection.sendall(bytes([-code, 0] if code < 0 else [0, code]))
                self.selector.unregister(connection)
            except (OSError, KeyError):
                pass
            connection.close()


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """One request: 8 bytes of length, then JSON whose first byte carries the file descriptors."""
    size = int.from_bytes(_exactly(connection, 8), "big")
    first, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(253 * 4))
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return json.loads(first + _exactly(connection, size - 1)), list(fds)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ValueError("the request ended early")
        data += part
    return data


def _run(request: dict, interpreter: Path) -> None:
    """Become the requested process: its descriptors, environment, directory, arguments, and program."""
    _adopt_descriptors(request.pop("received"), request["fds"])
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    added_path = request["env"].get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    # Whatever this process starts through sys.executable or multiprocessing's spawn starts warm as well.
    sys.executable = str(interpreter)
    if "multiprocessing.spawn" in sys.modules:
        sys.modules["multiprocessing.spawn"].set_executable(sys.executable)
    if "numpy" in sys.modules:  # the only preloaded generator that forks would share
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind, *rest = request["args"]
    head = os.getcwd() if kind == "-m" else "" if kind == "-c" else str(Path(kind).resolve().parent)
    sys.path[:] = [head, *filter(None, added_path.split(":")), *(p for p in sys.path[1:] if p)]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if kind == "-m":
        sys.argv = list(rest)
        runpy._run_module_as_main(rest[0])
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv = [kind, *rest]
        main.__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), vars(main))


def _exit_code(run: Callable[[], None]) -> int:
    """Run, and translate how it ended as the interpreter would."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit(code: int) -> None:
    """Leave as the interpreter does, but without tearing down the preloaded modules (seconds, and nothing to gain)."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _adopt_descriptors(received: list[int], wanted: list[int]) -> None:
    """Give each received descriptor the number it had in the process that sent it."""
    above = max([*wanted, *received]) + 1
    os.closerange(above, above + 256)
    parked = [os.dup2(fd, above + i) for i, fd in enumerate(received)]
    for fd in received:
        os.close(fd)
    for fd, number in zip(parked, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _kill_descendants() -> None:
    """SIGKILL everything below this process, again until nothing is left (a dying process may have just forked)."""
    for _ in range(50):
        alive = _descendants()
        if not alive:
            return
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry)] = int(fields[1])
    below, found = {os.getpid()}, []
    while True:
        new = [pid for pid, parent in parents.items() if parent in below and pid not in below]
        if not new:
            return found
        below.update(new)
        found += new


if __name__ == "__main__":
    main()
