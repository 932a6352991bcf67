"""Run the two stages that only a pilot has: 2b with a model every few steps, and scores on problems not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.stages.opd.stage import Opd
from verl_s2d.stages.pass_rates.stage import PassRates
from verl_s2d.stages.prepare.stage import VALIDATION, validation_file
from verl_s2d.stages.shared.hand_off import hand_off
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context

EVERY, STEP = "hand_off_every", "step"
"""Settings: steps between two models of a transfer; the step of the model that is scored."""


class Transfer(Opd):
    """Stage 2b that hands off its student every few steps.

    It runs one step more than its last model, because a step logs the travel of the student that samples in it.
    """

    kind = "transfer"

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        for step in model_steps(node):
            hand_off(node, directory, step, earlier=True, to=_model(step))

    def describe(self, node: Node) -> str:
        return f"{super().describe(node)}, a model every {node.settings[EVERY]} steps"


def model_steps(node: Node) -> range:
    """List the steps after which a transfer hands off a model."""
    every = node.settings[EVERY]
    return range(every, node.settings["steps"], every)


def travel_of(node: Node, directory: Path) -> dict[int, float]:
    """Return step -> travel of the model after it, as the next step has logged it."""
    logged = {step: data["s2d/travel"] for step, data in read_metrics(directory).items() if "s2d/travel" in data}
    later = {step: [d for at, d in sorted(logged.items()) if at > step] for step in model_steps(node)}
    return {step: found[0] for step, found in later.items() if found}


def _model(step: int) -> str:
    return f"model-{step}"


class PilotScores(PassRates):
    """Scores of a model on the problems that the pilot predicts for; the ledger has their labels and calls."""

    section = "planner"

    def arguments(self, node: Node, context: Context) -> dict[str, Any]:
        arguments = super().arguments(node, context)
        if STEP in node.settings:
            arguments["model"] = str(context.directory(node.inputs["model"]) / _model(node.settings[STEP]))
        return arguments

    def sets(self, node: Node, context: Context) -> Mapping[str, Path]:
        if node.settings.get(VALIDATION):
            return {VALIDATION: Path(validation_file(node, context))}
        return super().sets(node, context)

    def right(self, node: Node, directory: Path) -> dict[str, float]:
        """Return problem id -> share of right samples among those with a verdict."""
        (problems,) = self.result(node, directory)["per_problem"].values()
        return {p["id"]: p["correct"] / max(1, p["samples"] - p.get("unsettled", 0)) for p in problems}

    def describe(self, node: Node) -> str:
        where = "data.validation" if node.settings.get(VALIDATION) else "labels that the pilot does not train on"
        return f"{node.settings['samples']} samples of each of {where}, with verifier {node.settings['verifier']}"


def right_of(nodes: list[Node], context: Context) -> np.ndarray:
    """Read the scores of several models: (K, P) share of right samples, problems in the order of their ids.

    A problem that the verifier could not judge for one of the models is left out for all.
    """
    found = [node.stage.right(node, context.directory(node)) for node in nodes]
    ids = sorted(set.intersection(*map(set, found)))
    return np.array([[scores[i] for i in ids] for scores in found])
