"""Wait for the user's Ray cluster (RAY_ADDRESS), which is never started or stopped here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.logs import last_lines
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.hosts.process import Launcher, stop, wait
from verl_s2d.workflow.hosts.ray_places import Demand

NOT_YET, NEVER = 3, 4
"""Exit codes of verl_s2d.workflow.hosts.cluster_ready."""

_ANSWER_SECONDS = 120
_LOOK_SECONDS = 5


class GivenCluster:
    """A Ray cluster that a user started. Each attempt at a stage first waits until all nodes are free.

    So a stage that lost a node starts again once the node is back, and never joins actors of the stage before it.

    Args:
        run_dir: holds ray.log, the log of the checks; has to be visible from all nodes.
        launcher, environment: used to start the process that checks the cluster.
        demand: CPUs and accelerators that a stage holds.
        wait_minutes: limit of the wait.
        note: receives a line for the user while waiting.
    """

    def __init__(
        self,
        run_dir: Path,
        launcher: Launcher,
        environment: Mapping[str, str],
        *,
        demand: Demand,
        wait_minutes: float,
        note: Callable[[str], None],
    ):
        self._log, self._launcher, self._environment = run_dir / "ray.log", launcher, environment
        self._question = question(demand, run_dir.resolve())
        self._run_dir, self._minutes, self._note = run_dir, wait_minutes, note

    def environment(self) -> dict[str, str]:
        """Wait until the cluster can take a stage; return no variables, because RAY_ADDRESS is set.

        Raises:
            UserError: the cluster can never take the stage: a node lacks CPUs, the software or the run directory.
            StageFailed: the cluster was not ready within wait_minutes.
        """
        deadline, told = time.monotonic() + 60 * self._minutes, None
        while (problem := self._problem()) is not None:
            if time.monotonic() > deadline:
                raise StageFailed(
                    f"The Ray cluster at {os.environ['RAY_ADDRESS']} was not ready within cluster.wait_minutes = "
                    f"{self._minutes:g}: {problem}.",
                    log=self._log,
                )
            if problem != told:
                self._note(f"waiting for the Ray cluster at {os.environ['RAY_ADDRESS']}: {problem}")
                told = problem
            time.sleep(_LOOK_SECONDS)
        return {}

    def settle(self) -> str:
        """Return "": the next stage waits for the cluster."""
        return ""

    def stop(self) -> None:
        """Do nothing: the cluster belongs to the user."""

    def worker_logs(self) -> None:
        """Return None: the cluster's log directory may hold logs of other jobs."""

    def at_work(self) -> list[str]:
        """Return no workers: they may be on any node."""
        return []

    def _problem(self) -> str | None:
        handle = self._launcher.start(self._question, self._environment, self._run_dir, self._log)
        code = wait(handle, _ANSWER_SECONDS)
        stop(handle, 1)
        return _judged(code, (last_lines(self._log, 1) or ["no reason given"])[0])


def question(demand: Demand, run_dir: Path | None) -> list[str]:
    """Build the command that checks the cluster; without a run directory it checks resources only."""
    words = [json.dumps(asdict(demand)), str(run_dir or "")]
    return [sys.executable, "-m", "verl_s2d.workflow.hosts.cluster_ready", *words]


def ask_for_check(demand: Demand, environment: Mapping[str, str]) -> str:
    """Check the cluster of RAY_ADDRESS once, for `verl-s2d check`; return the result in words.

    Raises:
        UserError: the cluster does not answer, or has too few CPUs.
    """
    try:
        asked = subprocess.run(
            question(demand, None), env=dict(environment), capture_output=True, text=True, timeout=_ANSWER_SECONDS
        )
        code, said = asked.returncode, (asked.stdout.strip() or asked.stderr.strip() or "no reason given")
    except subprocess.TimeoutExpired:
        code, said = None, f"no answer within {_ANSWER_SECONDS} s"
    problem = _judged(code, said.splitlines()[-1]) if code else None
    if code not in (0, NOT_YET):
        raise UserError(
            f"The Ray cluster cannot be asked: {problem or said}.",
            key="RAY_ADDRESS",
            value=os.environ["RAY_ADDRESS"],
            remedy="Correct the address, or start the cluster.",
        )
    return "can take a stage now" if problem is None else f"a stage would wait: {problem}"


def _judged(code: int | None, said: str) -> str | None:
    """Name what keeps the cluster from taking a stage now; None when it can.

    Raises:
        UserError: waiting will not help.
    """
    if code == 0:
        return None
    if code == NEVER:
        raise UserError(
            f"the Ray cluster cannot run this recipe: {said}",
            key="RAY_ADDRESS",
            value=os.environ["RAY_ADDRESS"],
            remedy="see recipes/clusters/README.md",
        )
    return said if code == NOT_YET else f"it does not answer ({said})"
