"""Run the stage that makes prompts without labels by hint-delta (G-Zero)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.arguments import plain_arguments
from verl_s2d.stages.prepare.stage import (
    POOL_FILE,
    VALIDATION,
    columns_arguments,
    evaluation_files,
    validation_file,
)
from verl_s2d.stages.shared.node_settings import template_environment
from verl_s2d.stages.shared.sampling_stage import SamplingStage
from verl_s2d.stages.shared.summary_file import read_summary
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.stage import Command, Context, metrics_file

SUMMARY = "g_zero.json"
LABELLED = "labelled"
"""Role of the slices of the labelled problems."""
EARLIER = "earlier"
"""Role of a stage that made the prompts of a round before, followed by a dot and its number."""
KEYS = (
    *("proposals", "prompts", "pattern", "hint_prompt", "proposal_tokens", "percentiles", "question_characters"),
    *("hint_characters", "template", "least", "prompt_tokens"),
)
"""Settings that are arguments of the process."""


class GZero(SamplingStage):
    """Samples questions and hints from the student, keeps those of moderate hint-delta, and writes prompts.parquet.

    It reads no label: the labelled and the evaluation problems' questions are only compared with the proposals.
    """

    kind = "g_zero"
    section = "stages.g_zero"
    required_files = (POOL_FILE, "proposals.parquet", SUMMARY)
    consumes = ("sampled_tokens",)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        arguments = {
            **self.arguments(node, context),
            **{key: node.settings[key] for key in KEYS},
            "max_tokens": node.settings["response_tokens"],
            **columns_arguments(node),
            "known": [str(path) for path in known_files(node, context)],
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(context.directory(node), attempt))}
        env |= template_environment(node)
        return Command([sys.executable, "-m", "verl_s2d.stages.g_zero.propose", *plain_arguments(arguments)], env)

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        self.result(directory)

    def result(self, directory: Path) -> Mapping[str, Any]:
        """Read g_zero.json.

        Raises:
            StageFailed: it is incomplete.
        """
        return read_summary(directory / SUMMARY, lambda found: found["prompts"] > 0 and found["sampled_tokens"] > 0)

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        return empty_ledger(seconds) | {"sampled_tokens": self.result(directory)["sampled_tokens"]}

    def response_tokens(self, node: Node) -> int:
        return max(node.settings["response_tokens"], node.settings["proposal_tokens"])

    def sequences(self, node: Node, problems: int | None) -> int:
        """Count proposals and answers; scoring an answer samples nothing."""
        return 2 * node.settings["proposals"]

    def describe(self, node: Node) -> str:
        s = node.settings
        least, largest = s["percentiles"]
        return f"{s['proposals']:,} questions with hints, kept between percentiles {least:g} and {largest:g} of d"


def known_files(node: Node, context: Context) -> list[Path]:
    """Locate the problems not to be proposed: labelled, evaluation, validation ones, and earlier rounds' prompts."""
    labelled = node.inputs[LABELLED]
    files = [context.directory(labelled) / "all.parquet", *evaluation_files(node, "source", context).values()]
    if VALIDATION in node.sources:
        files.append(Path(validation_file(node, context)))
    rounds = (source for role, source in node.inputs.items() if role.partition(".")[0] == EARLIER)
    return [*files, *(context.directory(source) / POOL_FILE for source in rounds)]
