"""Run the tiny project in this process and check each start, artefact and ledger."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from tests.support.workflow.project import Ended, SimulatedStages, write_project
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.inputs import finished_rows
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.prepare.stage import Slices
from verl_s2d.workflow.graph import ancestors
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.digests import damage
from verl_s2d.workflow.store.manifest import is_built, read_manifest

FAILED = 71
"""Exit code of a driver whose run ended with failures."""


class Executor(SimulatedStages):
    """Checks each start: the stage is not finished, and all that it reads is.

    Args:
        failing: directory names of stages that fail.
        truth: file to which the verifier's calls are written, as `stage problem` lines, outside of the run.
    """

    def __init__(self, plan: Plan, failing=(), truth: Path | None = None):
        super().__init__()
        self._plan, self._failing = plan, set(failing)
        self._nodes = {node.label: node for node in plan.order}
        self._truth = os.open(truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if truth else None

    def start(self, argv, env, cwd, log):
        if Path(cwd).name not in self._nodes:  # no stage
            return super().start(argv, env, cwd, log)
        node = self._nodes[Path(cwd).name]
        assert not is_built(node, Path(cwd)), "a finished stage is repeated"
        for source in node.inputs.values():
            directory = self._plan.context.directory(source)
            assert is_built(source, directory) and not damage(directory, read_manifest(directory)["outputs"])
        if node.label in self._failing:
            self.started.append(node.label)
            return Ended(1)
        if node.kind == "slices":
            self.started.append(node.label)
            for name in Slices.required_files:
                (Path(cwd) / name).write_text("{}")
            return Ended(0)
        return super().start(argv, env, cwd, log)

    def called(self, stage: Path, problem: str) -> None:
        if self._truth is not None:
            os.write(self._truth, f"{stage.name} {problem}\n".encode())


def plan_of(directory: Path, rows: list[str], seeds: list[int]) -> Plan:
    return make_plan(load_recipe(write_project(directory)), run_dir=directory / "run", rows=rows, seeds=seeds)


def check_what_is_there(plan: Plan) -> None:
    """Whatever counts as finished is whole."""
    for node in plan.order:
        directory = plan.context.directory(node)
        if is_built(node, directory):
            assert damage(directory, read_manifest(directory)["outputs"]) == []


def check_ledgers(plan: Plan, truth: Path) -> None:
    """Every manifest says what happened: calls as often as they were made, each label once, steps once."""
    calls = Counter(line.split()[0] for line in truth.read_text().splitlines())
    labels = {tuple(line.split()) for line in truth.read_text().splitlines()}
    for node in plan.order:
        ledger = read_manifest(plan.context.directory(node))["ledger"]
        assert ledger["verifier_calls"] == calls[node.label]
        assert ledger["labels_read"] == sorted(problem for stage, problem in labels if stage == node.label)
        expected = {"grpo": (80, 0, 4), "opd": (20, 24, 4), "warmup": (0, 28, 4), "rollouts": (100, 0, 0)}
        found = (ledger["sampled_tokens"], ledger["teacher_scored_tokens"], ledger["updates"])
        assert found == expected.get(node.kind, (0, 0, 0))
    for row in finished_rows(plan):
        stages = {node.label for node in ancestors(row_target(plan, row))}
        assert row.ledger["verifier_calls"] == sum(calls[stage] for stage in stages)
        assert row.ledger["labels_read"] == sorted({problem for stage, problem in labels if stage in stages})


def row_target(plan: Plan, result):
    return next(row.target for row in plan.rows if (row.name, row.seed) == (result.name, result.seed))


def simulate_machine(monkeypatch) -> None:
    """Let no process be started or killed, and nothing survive a power cut."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)
    monkeypatch.setattr("verl_s2d.workflow.runner.kill_marked", lambda run_id: 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
