"""Query one process that imports verl, about this machine, our registrations and every stage's configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from verl_s2d.checks.accelerators import Line, judge_machine
from verl_s2d.checks.composition import require_accepted
from verl_s2d.checks.registration import judge
from verl_s2d.errors import UserError
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.stages.shared.training_stage import TrainingStage
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan

_PROCESS = "verl_s2d.checks.verl_process"


class VerlProbe(Probe):
    """Starts the process when constructed; each method waits for its answer.

    Args:
        device: `cpu` or `cuda`, where the stages run.
        environment: of the stages.
        plan: whose stages verl is asked about; None for none.
        nodes: nodes of the plan; those that do not train are ignored.
    """

    def __init__(
        self, device: str, environment: Mapping[str, str], plan: Plan | None = None, nodes: Iterable[Node] = ()
    ):
        self._gpu, self._plan = device != "cpu", plan
        self._nodes = [node for node in nodes if isinstance(node.stage, TrainingStage)]
        # Commands that differ in paths alone compose to the same settings: verl is asked once for all of them.
        self._same: dict[str, str] = {}
        commands: dict[tuple[str, ...], dict[str, Any]] = {}
        for node in self._nodes:
            argv = node.stage.command(node, plan.context, attempts.count(plan.context.directory(node)) + 1).argv
            command = commands.setdefault(_without_paths(argv, plan), {"name": node.label, "argv": list(argv)})
            self._same[node.label] = command["name"]
        super().__init__(["-m", _PROCESS], environment, {"stages": list(commands.values())})

    def machine(self) -> list[Line]:
        """Return findings about torch, GPUs and vLLM."""
        answer, failure = self._part("machine")
        return judge_machine(answer, failure, self._gpu)

    def registration(self) -> tuple[bool, str]:
        """Return (whether verl has all our names, these names or the failure)."""
        answer, failure = self._part("registration")
        return (False, failure) if answer is None else judge(answer)

    def stages(self, models: Models | None = None) -> dict[str, Mapping[str, Any]]:
        """Return the resolved configuration of every training stage by label, after verl has accepted all of them.

        Args:
            models: shapes to check parallel sizes against; None to look them up.

        Raises:
            UserError: the stages that verl rejects, or whose parallel sizes do not fit.
        """
        if not self._nodes:
            return {}
        answer, failure = self._part("stages")
        if answer is None:
            raise UserError(failure, key="verl", remedy="`verl-s2d check` shows more.")
        answers = {node.label: answer[self._same[node.label]] for node in self._nodes}
        require_accepted(self._plan, self._nodes, answers, models or Models(self._plan))
        return {label: found["settings"] for label, found in answers.items()}

    def _part(self, name: str) -> tuple[Any, str]:
        answer, failure = self.answer()
        return (answer or {}).get(name), failure


def _without_paths(argv: Iterable[str], plan: Plan) -> tuple[str, ...]:
    path = re.compile(re.escape(str(plan.context.run_dir)) + r"[^,\]}'\"]*")
    return tuple(path.sub("", word) for word in argv)
