"""Compare a student with a frozen teacher on rollouts of both, as a stage of the probe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.arguments import plain_arguments
from verl_s2d.stages.prepare.stage import prompts_file
from verl_s2d.stages.shared.node_settings import template_environment
from verl_s2d.stages.shared.summary_file import read_summary
from verl_s2d.teachers.router import TEACHER
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.stage import Command, Context, Stage, model_location, trusts_remote_code

STUDENT_SAMPLES, TEACHER_SAMPLES = "student_samples", "teacher_samples"
"""Roles of inputs."""
COMPARED = "compare.json"
"""File of the result."""


class Compare(Stage):
    """Measures whether a bridge from the teacher to the student stands, without training.

    Inputs: `model`, the student; `teacher`; `slices`; and the scored samples of both on one slice of these. It asks
    both models about all their rollouts, in one process on one device, and reads no label.
    """

    kind = "compare"
    required_files = (COMPARED,)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        s = node.settings
        arguments = {
            "student": model_location(node, "model", context),
            "teacher": model_location(node, TEACHER, context),
            "problems": str(prompts_file(node, context)),
            "student_rollouts": str(context.directory(node.inputs[STUDENT_SAMPLES]) / "generations.parquet"),
            "teacher_rollouts": str(context.directory(node.inputs[TEACHER_SAMPLES]) / "generations.parquet"),
            "out": str(context.directory(node)),
            **({"verifier": s["verifier"]} if "verifier" in s else {}),
            "device": context.device,
            "student_remote_code": trusts_remote_code(node, "model"),
            "teacher_remote_code": trusts_remote_code(node, TEACHER),
            **{f"chat_template.{name}": value for name, value in s["chat_template"].items()},
        }
        argv = [sys.executable, "-m", "verl_s2d.stages.compare.compare_models", *plain_arguments(arguments)]
        return Command(argv, template_environment(node))

    def frozen_roles(self, node: Node) -> tuple[str, ...]:
        return (TEACHER,)

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        self.result(directory)

    def result(self, directory: Path) -> Mapping[str, Any]:
        """Read compare.json.

        Raises:
            StageFailed: it is incomplete.
        """
        sides = ("student_rollouts", "teacher_rollouts")
        return read_summary(directory / COMPARED, lambda found: all(found[side]["tokens"] > 0 for side in sides))

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        return empty_ledger(seconds) | {"teacher_scored_tokens": self.result(directory)["scored_tokens"]}

    def describe(self, node: Node) -> str:
        return "exact divergences of student and teacher, and their overlap, on rollouts of both"
