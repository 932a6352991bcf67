"""Average the weights of models that were trained from the same one."""

from __future__ import annotations

import sys
from pathlib import Path

from verl_s2d.arguments import plain_arguments
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Command, Context, Stage, model_location, require_export


class Average(Stage):
    """Writes the mean of its models: `model`, whose configuration and tokenizer are kept, `model_1`, `model_2`, ..."""

    kind = "average"
    symbol = "mean"

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        models = {f"models.{i}": model_location(node, role, context) for i, role in enumerate(self.roles(node))}
        out = self.model_directory(context.directory(node))
        argv = [sys.executable, "-m", "verl_s2d.stages.average.average_weights"]
        return Command(argv + plain_arguments({"out": str(out), **models}))

    def roles(self, node: Node) -> list[str]:
        """List the roles of its models in order."""
        return sorted(node.sources, key=lambda role: int(role.partition("_")[2] or 0))

    def makes_model(self, node: Node) -> bool:
        return True

    def finalize(self, node: Node, directory: Path) -> None:
        require_export(node, self.model_directory(directory))

    def describe(self, node: Node) -> str:
        return f"the mean of the weights of {len(self.roles(node))} models"
