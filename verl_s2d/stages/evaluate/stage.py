"""Evaluate one model on every evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from verl_s2d.stages.evaluate.scored_samples import ScoredSamples
from verl_s2d.stages.prepare.stage import evaluation_files
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context


class Evaluate(ScoredSamples):
    """avg@k with its standard error. Its answers are not labels: the ledger has the time and a judge's answers."""

    kind = "evaluate"
    section = "evaluation"

    def sets(self, node: Node, context: Context) -> Mapping[str, Path]:
        return evaluation_files(node, "source", context)

    def describe(self, node: Node) -> str:
        return f"avg@{node.settings['samples']} with verifier {node.settings['verifier']}"
