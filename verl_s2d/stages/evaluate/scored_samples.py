"""Sample answers of one model on sets of problems and score them, as a stage."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.arguments import plain_arguments
from verl_s2d.stages.prepare.stage import columns_arguments
from verl_s2d.stages.shared.node_settings import template_environment, verifier_argument
from verl_s2d.stages.shared.sampling_stage import SamplingStage
from verl_s2d.stages.shared.summary_file import read_summary
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger
from verl_s2d.workflow.stage import Command, Context, metrics_file


class ScoredSamples(SamplingStage):
    """Common parts of the stages that run `sample_and_score`: avg@k and the correct samples of every problem."""

    scored = True
    required_files = ("generations.parquet", "result.json")

    @abstractmethod
    def sets(self, node: Node, context: Context) -> Mapping[str, Path]:
        """Locate the files of problems; name -> parquet."""

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        s = node.settings
        arguments = {
            **self.arguments(node, context),
            "verifier": verifier_argument(node),
            "samples": s["samples"],
            "max_tokens": s["max_tokens"],
            **{f"set.{name}": str(path) for name, path in self.sets(node, context).items()},
            **columns_arguments(node),
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(context.directory(node), attempt))}
        env |= template_environment(node)
        argv = [sys.executable, "-m", "verl_s2d.stages.evaluate.sample_and_score", *plain_arguments(arguments)]
        return Command(argv, env)

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        self.result(node, directory)

    def result(self, node: Node, directory: Path) -> dict[str, Any]:
        """Read result.json.

        Raises:
            StageFailed: it is incomplete.
        """

        def complete(found: dict[str, Any]) -> bool:
            sets = found["sets"]
            return bool(sets) and all("avg" in values and "stderr" in values for values in sets.values())

        return read_summary(directory / "result.json", complete)

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """Count what a judge was asked; evaluation answers are not labels."""
        asked = self.result(node, directory).get("judge", {})
        counted = {"judge_calls": asked.get("calls", 0), "judge_tokens": asked.get("tokens", 0)}
        return super().ledger(node, directory, seconds) | counted

    def response_tokens(self, node: Node) -> int:
        return node.settings["max_tokens"]

    def sequences(self, node: Node, problems: int | None) -> int | None:
        return None if problems is None else problems * node.settings["samples"]
