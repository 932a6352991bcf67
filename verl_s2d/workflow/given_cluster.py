"""The user's Ray cluster, that of RAY_ADDRESS: waited for, never started or stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.logs import last_lines
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.process import Launcher, stop, wait

NOT_YET, NEVER = 3, 4
"""Exit codes of verl_s2d.workflow.cluster_ready."""

_ANSWER_SECONDS = 120
_LOOK_SECONDS = 5


class GivenCluster:
    """Asked before each attempt at a stage whether it can take it: all nodes there and free, and nothing left on it of
    the stage before, so that a stage whose node was lost starts again when the node is back.

    Args:
        run_dir: the answers go to ray.log in it; has to be visible from all nodes.
        launcher, environment: how the question is put.
        nodes, gpus_per_node: what a stage needs.
        wait_minutes: how long to wait for it.
        note: tells the user what is waited for.
    """

    def __init__(
        self,
        run_dir: Path,
        launcher: Launcher,
        environment: Mapping[str, str],
        *,
        nodes: int,
        gpus_per_node: int,
        wait_minutes: float,
        note: Callable[[str], None],
    ):
        self._log, self._launcher, self._environment = run_dir / "ray.log", launcher, environment
        self._question = [sys.executable, "-m", "verl_s2d.workflow.cluster_ready"]
        self._question += [str(nodes), str(gpus_per_node), str(run_dir.resolve())]
        self._run_dir, self._minutes, self._note = run_dir, wait_minutes, note

    def environment(self) -> dict[str, str]:
        """Nothing to add: RAY_ADDRESS is set. Returns when the cluster can take a stage.

        Raises:
            UserError: it never will: a node lacks the software or the run directory.
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
        if code == 0:
            return None
        said = (last_lines(self._log, 1) or ["no reason given"])[0]
        if code == NEVER:
            raise UserError(
                f"the Ray cluster cannot run this recipe: {said}",
                key="RAY_ADDRESS",
                value=os.environ["RAY_ADDRESS"],
                remedy="see recipes/clusters/README.md",
            )
        if code == NOT_YET:
            return said
        return f"it does not answer ({said})"
