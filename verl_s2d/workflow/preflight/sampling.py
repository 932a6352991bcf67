"""GPUs of the stages that only sample: how many one engine is divided among."""

from __future__ import annotations

from collections.abc import Iterable

from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.sizing.layouts import check_sampler
from verl_s2d.workflow.sizing.models import Models
from verl_s2d.workflow.stages import kinds
from verl_s2d.workflow.stages.sampling import SamplingKind


def check_samplers(plan: Plan, nodes: Iterable[Node]) -> None:
    """Raises UserError for the first stage whose tensor_parallel_size does not fit the machine or the model's heads."""
    if plan.context.device == "cpu":
        return
    models = Models(plan)
    for node in nodes:
        if isinstance(kinds()[node.kind], SamplingKind):
            check_sampler(node, models.shape(node), plan.context.cluster)
