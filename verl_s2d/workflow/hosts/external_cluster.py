"""The user's Ray cluster, that of RAY_ADDRESS: waited for, never started or stopped."""

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
    """Asked before each attempt at a stage whether it can take it: all nodes there and free, and nothing left on it of
    the stage before, so that a stage whose node was lost starts again when the node is back.

    Args:
        run_dir: the answers go to ray.log in it; has to be visible from all nodes.
        launcher, environment: how the question is put.
        demand: what a stage holds.
        wait_minutes: how long to wait for it.
        note: tells the user what is waited for.
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
        """Nothing to add: RAY_ADDRESS is set. Returns when the cluster can take a stage.

        Raises:
            UserError: it never will: a node lacks CPUs, the software or the run directory.
            StageFailed: not within wait_minutes.
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
        """Nothing to say: the next stage asks."""
        return ""

    def stop(self) -> None:
        """Nothing: it is not ours."""

    def worker_logs(self) -> None:
        """None: there may be anybody's logs."""

    def at_work(self) -> list[str]:
        """None that this machine knows of: workers may be on any node."""
        return []

    def _problem(self) -> str | None:
        handle = self._launcher.start(self._question, self._environment, self._run_dir, self._log)
        code = wait(handle, _ANSWER_SECONDS)
        stop(handle, 1)
        return _judged(code, (last_lines(self._log, 1) or ["no reason given"])[0])


def question(demand: Demand, run_dir: Path | None) -> list[str]:
    """Return the command that asks the cluster; without a run directory only about its resources."""
    words = [json.dumps(asdict(demand)), str(run_dir or "")]
    return [sys.executable, "-m", "verl_s2d.workflow.hosts.cluster_ready", *words]


def ask_for_check(demand: Demand, environment: Mapping[str, str]) -> str:
    """Ask the cluster of RAY_ADDRESS once, for `verl-s2d check`; returns its answer in words.

    Raises:
        UserError: it does not answer, or has too few CPUs.
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
    """Name what keeps the cluster from taking a stage now; None when nothing does.

    Raises:
        UserError: nothing that will pass.
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
