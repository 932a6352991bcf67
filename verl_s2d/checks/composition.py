"""Check, before the first stage starts, that verl accepts every stage's configuration and that it fits the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.sizing.layouts import check_layout
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.stages.shared.training_stage import TrainingStage
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.subprocess_query import Probe


class CompositionProbe(Probe):
    """Composes each training stage's configuration, and runs verl's checks and ours on it.

    Args:
        nodes: nodes of the plan; those that do not train are ignored.
    """

    def __init__(self, plan: Plan, nodes: Iterable[Node], environment: Mapping[str, str]):
        self._plan = plan
        self._nodes = {node.label: node for node in nodes if isinstance(node.stage, TrainingStage)}
        question = []
        for label, node in self._nodes.items():
            attempt = attempts.count(plan.context.directory(node)) + 1
            argv = node.stage.command(node, plan.context, attempt).argv
            question.append({"name": label, "argv": list(argv)})
        super().__init__(["-m", "verl_s2d.stages.composition_process"], environment, question)

    def check(self, models: Models | None = None) -> dict[str, Mapping[str, Any]]:
        """Return the resolved configuration of every stage by label, after verl has accepted all of them.

        Args:
            models: shapes to check parallel sizes against.

        Raises:
            UserError: the first stage that verl rejects, or whose parallel sizes do not fit.
        """
        answer, failure = self.answer()
        if answer is None:
            raise UserError(failure, key="verl", remedy="`verl-s2d check` shows more.")
        models = models or Models(self._plan)
        for label, found in answer.items():
            node, refused = self._nodes[label], found["refused"]
            if found["settings"] is not None:
                # First, because verl's assertions explain less.
                check_layout(self._plan.recipe, node, found["settings"], models)
            if refused is not None:
                value = {} if refused["value"] is None else {"value": refused["value"]}
                raise UserError(
                    f"{node.name} would not start: {refused['problem']}",
                    key=refused["key"] or f"verl: of {node.name}",
                    remedy=refused["remedy"]
                    or "Change the key that the message names; `verl-s2d plan --overrides` shows all of the stage's.",
                    **value,
                )
        return {label: found["settings"] for label, found in answer.items()}
