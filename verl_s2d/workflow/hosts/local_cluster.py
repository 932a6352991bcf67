"""Run one local Ray head for all stages of a run, started when first needed. external_cluster is for a user's own."""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from verl_s2d import redaction
from verl_s2d.logs import last_lines
from verl_s2d.platforms.temporary_files import directory_for_sockets
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.hosts.process import Handle, Launcher, kill_marked, marked_processes, wait
from verl_s2d.workflow.hosts.ray_places import Demand, offered_cpus

_START_SECONDS = 120
_START_TRIES = 3
_SETTLE_SECONDS = 1.5
"""Time in which a started head looks, once a second, whether its processes live, and ends if one does not: on a busy
machine the client server gives up waiting for the others."""
_QUIET_SECONDS = 60


CLUSTER_MARKER = "VERL_S2D_CLUSTER"
"""Environment variable that marks the head and its descendants, as process.MARKER marks the whole run."""


class _HeadEnded(StageFailed):
    """Raised when the head ends before it is ready."""


class RayCluster:
    """A local Ray cluster that stages run on.

    Args:
        run_dir: directory of the head's log.
        run_id: marker of the head's processes: the run's id of 32 characters, then the ending of a further lane.
        launcher: starts the head.
        environment: environment of the head, which its workers inherit.
        device: on `cpu`, GPUs are logical: as many as the recipe asks for.
        demand: CPUs and accelerators that a stage holds. CPUs are logical on every device: verl reserves more than a
            small machine has, and would wait for them without a limit.
        log: name of the head's log.
    """

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        launcher: Launcher,
        environment: Mapping[str, str],
        device: str,
        demand: Demand,
        log: str = "ray.log",
    ):
        self._log = run_dir / log
        self._run_dir, self._run_id, self._launcher = run_dir, run_id, launcher
        self._head_environment, self._device, self._demand = environment, device, demand
        self._head: Handle | None = None
        self._address = ""
        # Ray's default depends on files in the home directory, and head and drivers read them differently.
        self._authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        redaction.remember([self._authentication["RAY_AUTH_TOKEN"]])
        self._temporary = directory_for_sockets() / f"s2d-{run_id[:8]}{run_id[32:]}"

    def environment(self) -> dict[str, str]:
        """Return the variables with which a stage joins the head; start one when there is none or it has died.

        Raises:
            StageFailed: the head did not start.
        """
        if self._head is None or self._head.poll() is not None:
            self.stop()
            self._start()
        return {"RAY_ADDRESS": self._address, **self._authentication}

    def _start(self) -> None:
        """Start the head, on another port if it ends at once: a free port may be taken before the head binds it."""
        for remaining in reversed(range(_START_TRIES)):
            try:
                return self._start_at(_free_port())
            except _HeadEnded:
                if not remaining:
                    raise

    def _start_at(self, port: int) -> None:
        log = self._log
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        argv += [f"--port={port}", f"--temp-dir={self._temporary}", "--include-dashboard=false"]
        argv.append(f"--num-cpus={offered_cpus(self._demand)}")
        if self._device == "cpu":
            argv.append(f"--num-gpus={self._demand.per_node}")
        already = log.stat().st_size if log.exists() else 0
        environment = {**self._head_environment, **self._authentication, CLUSTER_MARKER: self._run_id}
        self._head = self._launcher.start(argv, environment, self._run_dir, log)
        deadline, settled = time.monotonic() + _START_SECONDS, None
        while settled is None or time.monotonic() < settled:
            if settled is None and _listening(port) and b"Ray runtime started" in log.read_bytes()[already:]:
                settled = time.monotonic() + _SETTLE_SECONDS
            ended = self._head.poll() is not None
            if ended or (settled is None and time.monotonic() > deadline):
                self.stop()
                why = "it ended" if ended else f"not ready after {_START_SECONDS} s"
                kind = _HeadEnded if ended else StageFailed
                raise kind(f"The local Ray head did not start: {why}.", log=log, lines=last_lines(log, 15))
            time.sleep(0.1)
        self._address = f"127.0.0.1:{port}"

    def settle(self) -> str:
        """Wait until the actors of the last stage have ended; stop the head if they do not.

        verl's TransferQueue has one name in the whole cluster: a stage that starts too early would join the queue of
        the stage before it, which is about to end.

        Returns:
            The actors that stayed, in words; empty when the head is idle.
        """
        if self._head is None:
            return ""
        deadline = time.monotonic() + _QUIET_SECONDS
        while left := self.at_work():
            if time.monotonic() > deadline:
                self.stop()
                return f"{', '.join(left)} had not after {_QUIET_SECONDS} s"
            time.sleep(0.1)
        return ""

    def worker_logs(self) -> Path | None:
        """Locate the directory of the head's worker logs; None while there is no head."""
        return self._temporary / "session_latest" / "logs" if self._head is not None else None

    def at_work(self) -> list[str]:
        """List the workers that hold an actor or run a task, as Ray writes into their process title."""
        found = []
        for pid in marked_processes(self._run_id, CLUSTER_MARKER):
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and not title.startswith(_IDLE_TITLES):
                name = title.removeprefix(b"ray::").split(b"\0")[0].decode(errors="replace").strip()
                found.append(f"{name} (process {pid}{held_up(pid)})")
        return found

    def stop(self) -> None:
        """Stop the local head and everything it started."""
        if self._head is not None:
            # Killed at once: a graceful end takes ten seconds, and no state of the head outlives the run.
            self._head.kill()
            kill_marked(self._run_id, CLUSTER_MARKER)
            wait(self._head, 10)
            self._head = None
        shutil.rmtree(self._temporary, ignore_errors=True)


_HELD_UP = {"T": ", stopped by a signal", "t": ", held by a debugger", "D": ", waiting for a disk"}


def held_up(pid: int) -> str:
    """Describe what keeps a process from running; empty when nothing does, or where there is no /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return _HELD_UP.get(state, "")


_IDLE_TITLES = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
