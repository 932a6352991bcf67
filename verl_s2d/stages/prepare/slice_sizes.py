"""Count the problems in slices, before and after the slices exist."""

from __future__ import annotations

import json
from pathlib import Path

from verl_s2d.stages.prepare.stage import TRAIN_FILE, slice_sizes
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built


def slice_size(plan: Plan, node: Node, *, expected: int | None = None) -> int | None:
    """Count the problems in the slice that a stage reads.

    Args:
        expected: total of training problems, used until they exist.

    Returns:
        The number of problems; None when it cannot be known yet.
    """
    slices, name = node.inputs["slices"], node.settings["slice"]
    if _built(plan, slices):
        summary = json.loads((plan.context.directory(slices) / "slices.json").read_text())
        return len(summary["slices"][name])
    count = plan.recipe.data.labels
    if count is None:
        train = train_file(plan, slices)
        if train is not None:
            from verl_s2d.data.formats.data_files import row_count

            count = row_count(train, key="data.train")
        elif expected is not None:
            count = expected
        else:
            return None
    return slice_sizes(count)[name]


def train_file(plan: Plan, slices: Node) -> Path | None:
    """Locate the training problems that slices are made of; None until their script has run."""
    if "train" in slices.externals:
        return Path(slices.externals["train"].location)
    source = slices.inputs["source"]
    return plan.context.directory(source) / TRAIN_FILE if _built(plan, source) else None


def _built(plan: Plan, node: Node) -> bool:
    return is_built(node, plan.context.directory(node))
