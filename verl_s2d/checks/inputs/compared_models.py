"""Check that the models which a stage compares fit on one device of this machine, both at once."""

from __future__ import annotations

from collections.abc import Iterable

from verl_s2d.errors import Faults, UserError
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.stages.compare.stage import Compare
from verl_s2d.teachers.router import TEACHER
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan

_BYTES, _GIB, _SHARE = 2, 2**30, 0.85
"""Bytes of a bfloat16 weight, and the share of a GPU's memory left for weights beside activations."""


def check_compared(plan: Plan, nodes: Iterable[Node]) -> int:
    """Check the stages that compare models; return their number. On a CPU nothing is limited.

    Raises:
        UserError: this machine has no accelerator, or two models of known shape are too large for one.
    """
    compared = [node for node in nodes if isinstance(node.stage, Compare)]
    if plan.context.device == "cpu" or not compared:
        return len(compared)
    if not accelerator_here():
        raise UserError(
            f"{compared[0].name} holds both models on a GPU of this machine, which shows none.",
            key="cluster.device",
            value="cuda",
            remedy="Run the command on a machine that has GPUs, or choose the device cpu.",
        )
    models, faults, room = Models(plan), Faults(), plan.context.cluster.gpu_memory_gb
    for node in compared:
        shapes = [models.shape(node, role) for role in ("model", TEACHER)]
        needed = sum(_BYTES * shape.parameters for shape in shapes if shape is not None) / _GIB
        if needed > _SHARE * room:
            faults.add(
                UserError(
                    f"{node.name} holds both models on one GPU: {needed:.0f} GiB of weights on {room:g}.",
                    key="planner.teachers",
                    value=node.name.removeprefix("compare-"),
                    remedy="Leave the candidate out, or set cluster.gpu_memory_gb if a GPU has more.",
                )
            )
    faults.raise_found()
    return len(compared)
