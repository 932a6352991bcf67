"""Read a finished probe: every model's label use, every pair's distance, and the verdicts; write probe.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.data.files import write_json
from verl_s2d.errors import UserError
from verl_s2d.planner.probe_measures import gap, label_use
from verl_s2d.planner.probe_plan import ProbePlan
from verl_s2d.planner.probe_verdicts import judge_model, judge_pair
from verl_s2d.recipe.planner_settings import STUDENT
from verl_s2d.workflow.ledger import add_ledgers
from verl_s2d.workflow.store.manifest import read_manifest

PROBE = "probe.json"
"""File of the result in the run directory."""


def probe_result(probe: ProbePlan) -> dict[str, Any]:
    """Collect the numbers of a probe whose nodes are built, judge them, and write them to PROBE.

    Raises:
        UserError: no model solves any problem, or no sample has a verdict: the probe says nothing.
    """
    context, bounds = probe.plan.context, probe.plan.recipe.planner.thresholds
    scored = {role: node.stage.result(node, context.directory(node)) for role, node in probe.samples.items()}
    verdicts_of = {role: next(iter(result["per_problem"].values())) for role, result in scored.items()}
    require_success(probe, verdicts_of)
    compared = {role: node.stage.result(context.directory(node)) for role, node in probe.pairs.items()}
    models = {
        role: label_use(verdicts_of[role]) | _responses(role, result, compared) for role, result in scored.items()
    }
    judged = {role: judge_model(role, found, bounds) for role, found in models.items()}
    pairs: dict[str, Any] = {}
    for role, found in compared.items():
        pairs[role] = {"gap": gap(verdicts_of[STUDENT], verdicts_of[role]), **found}
        pairs[role]["bridge"], judged[f"{STUDENT} from {role}"] = judge_pair(
            role, pairs[role], judged[role][0].ok, bounds
        )
    ledgers = [read_manifest(context.directory(node))["ledger"] for node in probe.plan.order]
    total = add_ledgers(ledgers)
    result = {
        "recipe": probe.plan.recipe.name,
        "seed": probe.seed,
        "problems": models[STUDENT]["problems"],
        "samples": models[STUDENT]["samples"],
        "top_k": next(iter(compared.values()))["top_k"],
        "models": models,
        "pairs": pairs,
        "thresholds": bounds.model_dump(),
        "verdicts": [verdict.data() for of in judged.values() for verdict in of],
        "ledger": total | {"labels": len(total["labels_read"])},
        "stages": {node.name: node.label for node in probe.plan.order},
    }
    write_json(result, context.run_dir / PROBE)
    return result


def _responses(role: str, result: Mapping[str, Any], compared: Mapping[str, Any]) -> dict[str, Any]:
    """Return parse rate, mean length in tokens, and the share of responses cut off at the limit."""
    found = (
        compared[role]["teacher_rollouts"] if role in compared else next(iter(compared.values()))["student_rollouts"]
    )
    (told,) = result["sets"].values()
    return {
        "parse_rate": found["parse_rate"],
        "mean_tokens": told["mean_tokens"],
        "truncated": told["truncated"] / (told["n_problems"] * told["samples"]),
    }


def require_success(probe: ProbePlan, verdicts_of: Mapping[str, Any]) -> None:
    """Raise UserError if no model ever succeeds, or a model has no verdict at all.

    Args:
        verdicts_of: role -> its `per_problem` of result.json.
    """
    directory = probe.plan.context.directory(probe.samples[STUDENT]) / "generations.parquet"
    for role, problems in verdicts_of.items():
        if all(problem.get("unsettled", 0) == problem["samples"] for problem in problems):
            raise UserError(
                f"The verifier gave no sample of the {role} a verdict, so the probe measures nothing.",
                key="verifier",
                value=probe.plan.recipe.verifier,
                remedy="Look at its messages in the stage's log.txt.",
            )
    if not any(problem["correct"] for problems in verdicts_of.values() for problem in problems):
        planner = probe.plan.recipe.planner
        raise UserError(
            f"No model ever succeeds: none of {planner.samples} samples of {planner.problems} problems is right, by "
            f"{', '.join(verdicts_of)}. GRPO would have no gradient on any of them.",
            key="data",
            value=planner.problems,
            remedy=f"Read some samples ({directory}): choose easier problems or other models, or mend the verifier.",
        )
