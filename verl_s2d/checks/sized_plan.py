"""Add memory and cost of the stages to a plan, after verl has accepted each of them."""

from __future__ import annotations

from typing import Any

from verl_s2d.checks.composition import CompositionProbe
from verl_s2d.sizing.estimate import Estimate
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.runner import stage_environment


def sized(plan: Plan, view: dict[str, Any]) -> dict[str, Any]:
    """Add memory and cost of every stage to a plan's view, after verl has accepted each configuration.

    Raises:
        UserError: the first stage that would not start.
    """
    models = Models(plan)
    with CompositionProbe(plan, plan.order, stage_environment(plan.context.device)) as probe:
        estimate = Estimate(plan, probe.check(models), models).view()
    of_stages = estimate.pop("stages")
    labels = [node.label for node in plan.order]
    stages = [stage | of_stages.get(label, {}) for stage, label in zip(view["stages"], labels, strict=True)]
    return view | {"stages": stages, "sizes": estimate}
