"""Keep a pilot within a budget of sampled tokens or GPU-hours."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from verl_s2d.errors import UserError
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.stages.shared.batch_settings import sequences_per_step
from verl_s2d.stages.shared.sampling_stage import SamplingStage
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import add_ledgers
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built, read_manifest

_FORM = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)(h|k|M|G|)")
_FACTOR = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class PilotBudget:
    """A limit on what a pilot samples, or on the time it takes.

    Attributes:
        amount: sampled tokens, or hours of all GPUs (of the machine, on a CPU).
        hours: the amount is in hours.
    """

    amount: float
    hours: bool = False

    @classmethod
    def read(cls, text: str) -> PilotBudget:
        """Read 5M (tokens) or 2.5h (GPU-hours).

        Raises:
            UserError: it is neither.
        """
        found = _FORM.fullmatch(text)
        if found is None or float(found[1]) <= 0:
            raise UserError(
                "Not a budget.", key="--budget", value=text, remedy="Sampled tokens, as 5M, or GPU-hours, as 2.5h."
            )
        unit = found[2]
        return cls(float(found[1]) * _FACTOR.get(unit, 1), unit == "h")

    def problem(self, done: Plan, coming: Plan) -> str | None:
        """Say why the coming stages do not fit beside those that are done; None if they do.

        Tokens are bounded by the longest responses. The hours of a round are taken to be twice those of all before it,
        because a round doubles the labels; the first round always fits.
        """
        missing = coming.missing()
        if not missing:
            return None
        if self.hours:
            spent = gpu_hours(done)
            if 3 * spent <= self.amount:
                return None
            return f"{spent:.2g} GPU-hours are spent, the next round may take {2 * spent:.2g} of {self.amount:g}"
        spent, bound = tokens_spent(done), most_tokens(coming, missing)
        if spent + bound <= self.amount:
            return None
        return f"{spent:,.0f} tokens are sampled, the next round may take {bound:,.0f} of {self.amount:,.0f}"


def tokens_spent(plan: Plan) -> int:
    """Sum the sampled tokens of the stages that are built."""
    return add_ledgers(_ledgers(plan))["sampled_tokens"]


def gpu_hours(plan: Plan) -> float:
    """Sum the wall time of built stages times the cluster's GPUs, in hours."""
    cluster = plan.context.cluster
    return add_ledgers(_ledgers(plan))["seconds"] * cluster.nodes * cluster.gpus_per_node / 3600


def most_tokens(plan: Plan, nodes: Sequence[Node]) -> float:
    """Bound the tokens that stages sample: every response has its maximal length."""
    total = 0.0
    for node in nodes:
        if isinstance(node.stage, VerlTrainerStage):
            total += node.settings["steps"] * sequences_per_step(node) * node.stage.response_tokens(node)
        elif isinstance(node.stage, SamplingStage):
            sequences = node.stage.sequences(node, slice_size(plan, node))
            total += math.inf if sequences is None else sequences * node.stage.response_tokens(node)
    return total


def _ledgers(plan: Plan) -> list[dict]:
    directories = [(node, plan.context.directory(node)) for node in plan.order]
    return [read_manifest(directory)["ledger"] for node, directory in directories if is_built(node, directory)]
