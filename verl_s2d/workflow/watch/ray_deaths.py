"""Read from Ray which actor of a stage died, and why.

    python -m verl_s2d.workflow.watch.ray_deaths

waits until an actor that a driver of this run (process.MARKER) started on the cluster of RAY_ADDRESS dies, prints one
line about the death, and exits. Intended deaths (ray.kill, exit_actor, no reference left) and deaths that follow from
the owner's do not count.

Ray's control store is read directly: the dashboard that serves `ray list actors` may be off, and joining the cluster as
a driver would add a job to it.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.workflow.hosts.process import MARKER, Launcher, marked_processes, stop

_POLL_SECONDS = 10
_MESSAGE_LENGTH = 300


class DeathWatch:
    """Watches a stage's actors from a separate process, so that this one need not import Ray.

    Args:
        environment: the stage's environment, with RAY_ADDRESS and process.MARKER.
        log: output of the process.
    """

    def __init__(self, launcher: Launcher, environment: Mapping[str, str], log: Path):
        log.parent.mkdir(exist_ok=True)
        self._log = log
        self._handle = launcher.start([sys.executable, "-m", __name__], environment, log.parent, log)

    def death(self) -> str | None:
        """Describe the first unexpected death; None while there is none, or when Ray does not answer."""
        return self._log.read_text(errors="replace").splitlines()[-1] if self._handle.poll() == 0 else None

    def stop(self) -> None:
        """End the process."""
        stop(self._handle, 0)


def unexpected(actor: Mapping[str, Any]) -> str | None:
    """Describe an actor's unexpected death; None for an intended one, or one that follows from its owner's.

    Args:
        actor: an entry of `GlobalState.actor_table`.
    """
    cause = actor["DeathCause"]
    kind = cause.WhichOneof("context")
    if kind == "creation_task_failure_context":
        traceback = cause.creation_task_failure_context.formatted_exception_string.strip()
        why = f"its __init__ raised {traceback.splitlines()[-1]}"
    elif kind in ("runtime_env_failed_context", "oom_context"):
        why = getattr(cause, kind).error_message
    elif kind == "actor_died_error_context":
        why, reason = cause.actor_died_error_context.error_message, cause.actor_died_error_context.reason
        # An intended exit is reported as a death, too; only the message has the exit type.
        ended = reason == cause.actor_died_error_context.WORKER_DIED and "exit type: INTENDED_" not in why
        if not ended and reason != cause.actor_died_error_context.NODE_DIED:
            return None
        why = why.rpartition("Worker exit detail: ")[2]
    else:
        return None
    name = actor["ActorClassName"].rpartition(".")[2]
    where = f"process {actor['Pid']} on {actor['Address']['IPAddress']}"
    return f"{name} ({where}): {textwrap.shorten(why, _MESSAGE_LENGTH, placeholder=' ...')}"


def _own_jobs(state: Any, run_id: str) -> set[str]:
    """List the ids of the jobs whose driver is a process of this run on this machine; a running stage has one."""
    import psutil

    pids = set(marked_processes(run_id))
    here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return {job["JobID"] for job in state.job_table() if job["DriverPid"] in pids and job["DriverIPAddress"] in here}


def main() -> int:
    """Wait for the first unexpected death and print it."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    address = canonicalize_bootstrap_address_or_die(os.environ["RAY_ADDRESS"])
    state, jobs = GlobalState(), set()
    options = GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    state._initialize_global_state(options)
    while True:  # no limit: this process is stopped when the stage ends
        jobs = jobs or _own_jobs(state, os.environ[MARKER])
        dead = [actor for actor in state.actor_table(None, None, "DEAD").values() if actor["JobID"] in jobs]
        for actor in sorted(dead, key=lambda actor: actor["EndTime"]):
            if text := unexpected(actor):
                print(text, flush=True)
                return 0
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
