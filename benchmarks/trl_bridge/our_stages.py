"""Read the stages of a row from a finished run directory, as the TRL side has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.trl_bridge.bridge_plan import Inputs
from benchmarks.trl_bridge.stage_figures import StageFigures
from verl_s2d.errors import UserError
from verl_s2d.workflow.store.manifest import read_manifest

ROW = "half-split"
_SET = "eval"


@dataclass(frozen=True)
class FinishedStage:
    """The directory of a finished stage."""

    directory: Path

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Read the manifest. Raises UserError if there is none."""
        found = read_manifest(self.directory)
        if found is None:
            raise UserError(
                "The stage is not finished.", value=str(self.directory), remedy=f"Run the row {ROW} to its end."
            )
        return found

    @property
    def model(self) -> Path:
        """Directory of the model that the stage made: a script writes it into the stage's own."""
        return self.directory / "model" if (self.directory / "model").is_dir() else self.directory

    def input(self, role: str) -> FinishedStage:
        """Return the stage that this one reads in this role."""
        used = self.manifest["inputs"][role]
        return FinishedStage(self.directory.parent / f"{used['kind']}-{used['digest'][:12]}")

    def figures(self, stage: str) -> StageFigures:
        """Read its times, updates and tokens: those sampled, or in 2a those trained on."""
        ledger = self.manifest["ledger"]
        attempts = [json.loads(path.read_text()) for path in sorted(self.directory.glob("attempts/attempt-*.json"))]
        return StageFigures(
            stage=stage,
            spans=tuple((attempt["started"], attempt["ended"]) for attempt in attempts),
            updates=ledger["updates"],
            tokens=ledger["sampled_tokens"] or ledger["teacher_scored_tokens"],
        )


class RowStages:
    """The stages behind the row half-split of one seed."""

    def __init__(self, run_dir: Path):
        link = run_dir / "models" / ROW
        if not link.exists():
            raise UserError(
                f"The run directory has no model of the row {ROW}.",
                key="run",
                value=str(run_dir),
                remedy="Give the directory of a finished run of one seed.",
            )
        self.student_rl = FinishedStage(link.resolve().parent)
        self.opd = self.student_rl.input("model")
        self.warmup = self.opd.input("model")
        self.rollouts = self.warmup.input("rollouts")
        self.teacher_rl = self.opd.input("teacher")
        self.student, self.teacher = self.warmup.input("model"), self.teacher_rl.input("model")
        self.slices = self.student_rl.input("slices")
        self.data = self.slices.input("source")

    def inputs(self) -> Inputs:
        """Return the models and problems that the stages start from."""
        return Inputs(
            teacher=str(self.teacher.model),
            student=str(self.student.model),
            first_half=str(self.slices.directory / "1h.parquet"),
            second_half=str(self.slices.directory / "2h.parquet"),
            evaluation=str(self.data.directory / f"{_SET}.parquet"),
        )

    def seed(self) -> int:
        """Return the seed of the sampling and of the problems' split."""
        return self.slices.manifest["settings"]["seed"]

    def figures(self) -> list[StageFigures]:
        """Read all stages, and the evaluations of those models that were evaluated."""
        stages = ("teacher_rl", "rollouts", "warmup", "opd", "student_rl")
        found = [getattr(self, name).figures(name) for name in stages]
        evaluated = {one.manifest["inputs"]["model"]["digest"]: one for one in self._evaluations()}
        for name in ("teacher", "student", *stages):
            one = evaluated.get(getattr(self, name).manifest["digest"])
            if one is not None:
                found.append(_evaluation(one, f"evaluate {name}"))
        return found

    def _evaluations(self) -> list[FinishedStage]:
        folders = self.student_rl.directory.parent.glob("evaluate-*")
        return [FinishedStage(folder) for folder in sorted(folders) if read_manifest(folder)]


def _evaluation(stage: FinishedStage, name: str) -> StageFigures:
    result = json.loads((stage.directory / "result.json").read_text())
    shares = {problem["id"]: problem["correct"] / problem["samples"] for problem in result["per_problem"][_SET]}
    answers = result["sets"][_SET]
    tokens = round(answers["mean_tokens"] * answers["samples"] * answers["n_problems"])
    figures = stage.figures(name)
    return StageFigures(name, figures.spans, figures.updates, tokens, shares)
