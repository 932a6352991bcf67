"""Start the processes of a run and stop all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

MARKER = "VERL_S2D_RUN"
"""Environment variable that every process of a run inherits; its value is the id of the run directory. It finds the
processes left by a killed run, however they were started and whoever their parent is now."""


class Handle(Protocol):
    """A started process."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code (negative: killed by that signal); None while the process runs."""

    def terminate(self) -> None:
        """Send SIGTERM to the process and its session. No error when it has ended."""

    def kill(self) -> None:
        """Send SIGKILL to the process and its session. No error when it has ended."""


class Launcher(Protocol):
    """Starts processes. All of a run's processes, the Ray head included, go through one launcher."""

    def start(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Handle:
        """Start argv in a session of its own, with `env` as its whole environment, output appended to `log`."""

    def close(self) -> None:
        """Release the launcher's own resources. Call it once, after every process has ended."""


class SubprocessLauncher:
    """Starts ordinary processes."""

    def start(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Handle:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return SessionHandle(process)

    def close(self) -> None:
        return None


class SessionHandle:
    """A process that leads its own session."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Also when the leader has ended: other members may live, and the group id stays theirs until they end.
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return


def stop(handle: Handle, grace_seconds: float) -> None:
    """Stop a process: SIGTERM, wait at most `grace_seconds`, SIGKILL, wait at most 10 s."""
    handle.terminate()
    wait(handle, grace_seconds)
    handle.kill()
    wait(handle, 10)


def wait(handle: Handle, seconds: float) -> int | None:
    """Wait at most `seconds`; return the exit code, or None when the process still runs."""
    deadline = time.monotonic() + seconds
    while (code := handle.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return code


def marked_processes(value: str, marker: str = MARKER) -> list[int]:
    """List the other processes with `marker=value` in their environment, their descendants, and their sessions.

    Descendants and sessions count because some programs overwrite their environment when they change their title.
    Empty where there is no /proc.
    """
    wanted = f"{marker}={value}".encode()
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                continue
            parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue
    own = os.getpid()
    found.discard(own)
    marked_sessions = {sessions[pid] for pid in found} - {os.getsid(0)}
    found |= {pid for pid, session in sessions.items() if session in marked_sessions}
    grew = True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grew = bool(children)
    return sorted(found - {own})


def kill_marked(value: str, marker: str = MARKER, seconds: float = 10) -> int:
    """Kill every process that `marked_processes` finds and wait for their end; return their number.

    Repeats, because a process may start another one between the search and the kill.
    """
    deadline = time.monotonic() + seconds
    killed: set[int] = set()
    while (pids := marked_processes(value, marker)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.05)
    return len(killed)
