"""Add memory and cost of the stages to a plan, after verl has accepted each of them."""

from __future__ import annotations

from typing import Any

from verl_s2d.checks.inputs.batch_sizes import check_batches
from verl_s2d.checks.inputs.verl_keys import check_verl_keys
from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.sizing.estimate import Estimate
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.workflow.plan import Plan


def sized(plan: Plan, view: dict[str, Any]) -> dict[str, Any]:
    """Add memory and cost of every stage to a plan's view, after verl has accepted each configuration.

    Raises:
        UserError: the stages that would not start.
    """
    # First, because verl takes seconds to import and explains less.
    check_verl_keys(plan.order)
    check_batches(plan, plan.order)
    models, device = Models(plan), plan.context.device
    with VerlProbe(device, stage_environment(device), plan, plan.order) as probe:
        estimate = Estimate(plan, probe.stages(models), models).view()
    of_stages = estimate.pop("stages")
    labels = [node.label for node in plan.order]
    stages = [stage | of_stages.get(label, {}) for stage, label in zip(view["stages"], labels, strict=True)]
    return view | {"stages": stages, "sizes": estimate}
