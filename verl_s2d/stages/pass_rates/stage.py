"""Measure a model's pass rates on a slice, which decide the problem weights of the stage that trains the model next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from verl_s2d.data.files import write_json
from verl_s2d.stages.evaluate.scored_samples import ScoredSamples
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger
from verl_s2d.workflow.stage import Context

PASS_RATES = "pass_rates.json"
"""File of the result: problem id -> share of its samples that the verifier accepted."""


class PassRates(ScoredSamples):
    """Samples K answers to each problem of a slice and scores them (PACED, arXiv 2603.11178, K = 8 at temperature 1).

    A sample without a verdict counts neither as right nor as wrong; a problem with no verdict at all has the rate 0.
    The verifier reads the answers here: the slice's labels enter the ledger.
    """

    kind = "pass_rates"
    section = "stages.pass_rates"
    consumes = ("labels", "verifier_calls", "sampled_tokens")

    def sets(self, node: Node, context: Context) -> Mapping[str, Path]:
        name = node.settings["slice"]
        return {name: context.directory(node.inputs["slices"]) / f"{name}.parquet"}

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        result = self.result(node, directory)
        (problems,), (told,) = result["per_problem"].values(), result["sets"].values()
        rates = {p["id"]: p["correct"] / max(1, p["samples"] - p.get("unsettled", 0)) for p in problems}
        rates |= dict.fromkeys(told.get("left_out", ()), 0.0)
        write_json(rates, directory / PASS_RATES)

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        result = self.result(node, directory)
        (problems,), (told,) = result["per_problem"].values(), result["sets"].values()
        unscored = told.get("unscored", 0)
        calls = sum(problem["samples"] for problem in problems) + unscored
        return super().ledger(node, directory, seconds) | {
            "labels_read": sorted([*(problem["id"] for problem in problems), *told.get("left_out", ())]),
            "verifier_calls": calls,
            "unscored_calls": unscored,
            "unsettled_calls": sum(problem.get("unsettled", 0) for problem in problems),
            "sampled_tokens": round(told["mean_tokens"] * calls),
        }

    def describe(self, node: Node) -> str:
        s = node.settings
        return f"pass rates on slice {s['slice']}, {s['samples']} samples a problem, with verifier {s['verifier']}"
