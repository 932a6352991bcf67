"""Would verl accept every stage's configuration? Asked of verl, before the first stage starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from verl_s2d.errors import UserError
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.probe import Probe
from verl_s2d.workflow.stages import kinds

TRAINING_KINDS = ("grpo", "opd", "warmup")


class CompositionProbe(Probe):
    """Composes the configuration of each stage that trains, and runs verl's checks and ours on it.

    Args:
        nodes: of the plan; stages of other kinds are passed over.
    """

    def __init__(self, plan: Plan, nodes: Iterable[Node], environment: Mapping[str, str]):
        question = []
        for node in nodes:
            if node.kind in TRAINING_KINDS:
                attempt = attempts.count(plan.context.directory(node)) + 1
                argv = kinds()[node.kind].command(node, plan.context, attempt).argv
                question.append({"name": node.name, "argv": list(argv)})
        super().__init__(["-m", "verl_s2d.training.composition"], environment, question)

    def check(self) -> int:
        """The number of stages that verl accepts, which is all of them.

        Raises:
            UserError: the first stage that it does not.
        """
        answer, failure = self.answer()
        if answer is None:
            raise UserError(failure, key="verl", remedy="`verl-s2d check` tells more.")
        for name, refused in answer.items():
            if refused is not None:
                value = {} if refused["value"] is None else {"value": refused["value"]}
                raise UserError(
                    f"{name} would not start: {refused['problem']}",
                    key=refused["key"] or f"verl: of {name}",
                    remedy=refused["remedy"]
                    or "Change the key that the message names; `verl-s2d plan --overrides` shows all of the stage's.",
                    **value,
                )
        return len(answer)
