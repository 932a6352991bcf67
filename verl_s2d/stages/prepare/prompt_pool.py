"""Run the stage that makes a slice of prompts without labels, alone or beside those of labelled problems."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from verl_s2d.arguments import plain_arguments
from verl_s2d.stages.prepare.stage import (
    POOL,
    POOL_FILE,
    SOURCES,
    Slices,
    columns_arguments,
    limit_arguments,
)
from verl_s2d.stages.shared.node_settings import template_environment
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.stage import Command, Context, Stage

SUMMARY = "pool.json"
LABELLED = "labelled"
"""Setting: the slice of labelled problems whose prompts are read too. The role of its node is `slices`."""


class PromptPool(Stage):
    """Writes the prompts of the pool, and those of a slice of labelled problems, without answers.

    Its file is the slice `prompts`, or `all+prompts`; the labelled problems come first.
    """

    kind = "pool"
    prepares = True
    required_files = (POOL_FILE, SUMMARY)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        arguments = {
            "out": str(context.directory(node)),
            POOL: [str(path) for path in pool_files(node, context)],
            **({LABELLED: str(labelled_file(node, context))} if LABELLED in node.settings else {}),
            **({SOURCES: node.settings[SOURCES]} if SOURCES in node.settings else {}),
            **(limit_arguments(node, context) if "policy" in node.settings else {}),
            **columns_arguments(node),
        }
        argv = [sys.executable, "-m", "verl_s2d.stages.prepare.write_pool", *plain_arguments(arguments)]
        return Command(argv, template_environment(node) if "policy" in node.settings else {})

    def prompts_file(self, slice_name: str) -> str:
        """Name the file with the prompts, of which a node has one slice."""
        return POOL_FILE

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """Count the prompts that were dropped or cut."""
        counts = json.loads((directory / SUMMARY).read_text())
        return empty_ledger(seconds) | {"overlong_prompts": len(counts["dropped"]) + len(counts["cut"])}

    def describe(self, node: Node) -> str:
        sources, labelled = node.settings.get(SOURCES), node.settings.get(LABELLED)
        beside = f", and those of the labelled problems in slice {labelled}" if labelled else ""
        return f"prompts without labels{beside}" + (f": those from {', '.join(sources)}" if sources else "")


def pool_files(node: Node, context: Context) -> list[Path]:
    """Locate the files of a pool: the recipe's, or what a stage writes."""
    if POOL in node.inputs:
        return [context.directory(node.inputs[POOL]) / POOL_FILE]
    return [Path(external.location) for role, external in node.externals.items() if role.partition(".")[0] == POOL]


def labelled_file(node: Node, context: Context) -> Path:
    """Locate the prompts of the labelled problems that a pool has, too."""
    slices = node.inputs["slices"]
    assert isinstance(slices.stage, Slices)
    return context.directory(slices) / slices.stage.prompts_file(node.settings[LABELLED])
