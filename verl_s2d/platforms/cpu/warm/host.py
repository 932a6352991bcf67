"""Import modules once and fork on request; end all forks with the owner.

    python -m verl_s2d.platforms.cpu.warm.host DIRECTORY --preload module,module

writes DIRECTORY/python (see `interpreter`), serves DIRECTORY/socket, and prints one line when it is ready. The owner
holds the other end of standard input. When that closes, for any reason (kill -9 included), or on SIGTERM, every
descendant of the host is killed. Linux only: the host is the child subreaper of its descendants.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import importlib
import importlib.util
import json
import os
import resource
import selectors
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_s2d.platforms.cpu.warm import descendants, fork

Request = dict[str, Any]
"""A request from `interpreter`; "received" has the descriptors that arrived with it."""


def write_interpreter(directory: Path) -> Path:
    """Write DIRECTORY/python, the executable that starts warm; return its path."""
    source = Path(__file__).with_name("interpreter.py").read_text()
    source = source.replace('SOCKET = ""', f"SOCKET = {str(directory / 'socket')!r}")
    source = source.replace('PYTHON = ""', f"PYTHON = {sys.executable!r}")
    path = directory / "python"
    path.write_text(f"#!{sys.executable} -SE\n{source}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main() -> None:
    """Serve until the owner ends. In a fork, `serve` returns the request to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preload", default="", help="modules to import, comma separated")
    options = parser.parse_args()
    descendants.adopt_orphans()
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # imports may print, and standard output is reserved for the line that reports readiness
    _preload(filter(None, options.preload.split(",")))
    interpreter = write_interpreter(options.directory)
    server = Server(options.directory / "socket")
    with announce:
        announce.write(f"ready {interpreter}\n")
    # Every fork would print the contents of an unflushed buffer again.
    sys.stdout.flush()
    sys.stderr.flush()
    request = server.serve()
    if request is not None:
        fork.run(request, interpreter)


class _Postponed:
    """Keeps Ray out of the host: its C++ part reads a worker's environment variables at import."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is imported by each fork itself")


def _preload(modules: Iterable[str]) -> None:
    """Import the modules; one that fails is imported by each fork instead."""
    sys.meta_path.insert(0, _Postponed)
    with _unexecuted("wandb"):
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                print(f"not preloaded: {module}: {error!r}", file=sys.stderr)
    sys.meta_path.remove(_Postponed)


@contextlib.contextmanager
def _unexecuted(name: str) -> Iterator[None]:
    """Let a module be found and imported, and run it only in the forks that import it.

    wandb makes temporary directories when it runs, which the first fork that ends would delete for all.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or name in sys.modules:
        yield
        return
    sys.modules[name] = importlib.util.module_from_spec(spec)
    yield
    del sys.modules[name]


@dataclass
class _Arriving:
    """A request that may be incomplete."""

    connection: socket.socket
    data: bytearray = field(default_factory=bytearray)
    fds: array.array = field(default_factory=lambda: array.array("i"))

    def read(self) -> Request | None:
        """Read the available bytes; return the request once it is complete.

        Raises:
            ValueError: the request ended early, is malformed, or has more descriptors than this process may open.
        """
        # no limit: the connection does not block
        part, ancillary, flags, _ = self.connection.recvmsg(1 << 16, socket.CMSG_SPACE(253 * self.fds.itemsize))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.fds.frombytes(data[: len(data) - len(data) % self.fds.itemsize])
        if not part or flags & socket.MSG_CTRUNC:
            raise ValueError("the request ended early")
        self.data += part
        end = 8 + int.from_bytes(self.data[:8], "big")
        if len(self.data) < max(end, 9):
            return None
        request = json.loads(self.data[8:end])
        if len(request["fds"]) != len(self.fds):
            raise ValueError("descriptors are missing")
        return request | {"received": list(self.fds)}

    def release(self) -> None:
        """Close this process's copies of the descriptors."""
        for fd in self.fds:
            os.close(fd)


class Server:
    """Accepts requests and forks. A connection lives as long as its fork. No client can block the server."""

    def __init__(self, path: Path):
        self.selector = selectors.DefaultSelector()
        self.arriving: dict[socket.socket, _Arriving] = {}
        self.forks: dict[int, socket.socket] = {}
        self.ended = False
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.setblocking(False)
        self.listener.bind(str(path))
        self.listener.listen(1024)
        self.wakeup, self.signalled = socket.socketpair()
        self.wakeup.setblocking(False)
        self.signalled.setblocking(False)
        signal.set_wakeup_fd(self.signalled.fileno())
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        # The owner handles a Ctrl-C on its terminal.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self._wake_up)
        self.selector.register(0, selectors.EVENT_READ, self._owner)

    def serve(self) -> Request | None:
        """Loop in the host; return the request in each fork, and None once the owner and all forks have ended."""
        while not self.ended:
            for key, _ in self.selector.select():  # no limit: idle until a request arrives or the owner ends
                request = key.data(key.fileobj)
                if request is not None:
                    return request
            self._reap()
        descendants.kill_all()
        return None

    def _owner(self, stdin: int) -> None:
        self.ended = self.ended or not os.read(stdin, 1)

    def _wake_up(self, wakeup: socket.socket) -> None:
        self.ended = self.ended or signal.SIGTERM in wakeup.recv(4096)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the client has gone, or no descriptor is free right now
            time.sleep(0.01)
            return
        connection.setblocking(False)
        self.arriving[connection] = _Arriving(connection)
        self.selector.register(connection, selectors.EVENT_READ, self._receive)

    def _receive(self, connection: socket.socket) -> Request | None:
        arriving = self.arriving[connection]
        try:
            request = arriving.read()
        except BlockingIOError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            self._forget(arriving)
            connection.close()
            return None
        if request is None:
            return None
        pid = self._fork()
        if pid == 0:
            del self.arriving[connection]
            self._leave(connection)
            return request
        self._forget(arriving)
        if pid is None:
            connection.close()
            return None
        self.forks[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, lambda _: self._signal(pid, connection))
        with contextlib.suppress(OSError):
            connection.send(b"+")
        return None

    def _forget(self, arriving: _Arriving) -> None:
        self.selector.unregister(arriving.connection)
        del self.arriving[arriving.connection]
        arriving.release()

    def _fork(self) -> int | None:
        """Fork; return None when the machine has no room for another process. The fork dies with this process."""
        host = os.getpid()
        # Signals to the fork wait until it has installed its own handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                fork.detach(host)
            return pid
        except OSError:
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _leave(self, connection: socket.socket) -> None:
        """Close the host's resources in a fork."""
        self.selector.close()
        for end in (self.listener, self.wakeup, self.signalled, connection, *self.forks.values()):
            end.close()
        for arriving in self.arriving.values():
            arriving.connection.close()
            arriving.release()

    def _signal(self, pid: int, connection: socket.socket) -> None:
        """Forward a received byte as a signal; at the end of the connection, its client having died, kill the fork."""
        try:
            number = connection.recv(1)
        except OSError:
            number = b""
        # Until it is reaped the number is the fork's, dead or alive.
        if number:
            with contextlib.suppress(OSError):
                os.kill(pid, number[0])
        else:
            self.selector.unregister(connection)
            for kill in (os.killpg, os.kill):  # with its group, as the client's launcher would have done
                with contextlib.suppress(OSError):
                    kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self.forks.pop(pid, None)
            if connection is None:  # an orphan of a fork, adopted by the host as subreaper
                continue
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                connection.send(bytes([-code, 0] if code < 0 else [0, code]))
            with contextlib.suppress(KeyError):  # the client may have ended first
                self.selector.unregister(connection)
            connection.close()


if __name__ == "__main__":
    main()
