"""Evaluation of one model on every evaluation set (kind `evaluate`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.overrides import plain_arguments
from verl_s2d.workflow.stages.base import (
    Command,
    Context,
    SimpleKind,
    metrics_file,
    model_location,
    trusts_remote_code,
    verifier_argument,
)
from verl_s2d.workflow.stages.preparation import evaluation_files


class Evaluate(SimpleKind):
    """avg@k with its standard error. Evaluation answers are not labels: only its time enters the ledger."""

    required_files = ("generations.parquet", "result.json")

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        directory, s = context.directory(node), node.settings
        arguments = {
            "model": model_location(node, "model", context),
            "trust_remote_code": trusts_remote_code(node, "model"),
            "verifier": verifier_argument(node),
            "out": str(directory),
            **{key: s[key] for key in ("samples", "temperature", "top_p", "max_tokens", "seed")},
            **node.operations,
            **{f"chat_template.{name}": value for name, value in s["chat_template"].items()},
            **{f"set.{name}": str(path) for name, path in evaluation_files(node, "source", context).items()},
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(directory, attempt))}
        return Command([sys.executable, "-m", "verl_s2d.evaluation.evaluate", *plain_arguments(arguments)], env)

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        try:
            sets = json.loads((directory / "result.json").read_text())["sets"]
            complete = bool(sets) and all("avg" in values and "stderr" in values for values in sets.values())
        except (OSError, ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            raise StageFailed(f"{node.name} left no usable result.json.", log=directory / "log.txt")

    def describe(self, node: Node) -> str:
        return f"avg@{node.settings['samples']} with verifier {node.settings['verifier']}"
