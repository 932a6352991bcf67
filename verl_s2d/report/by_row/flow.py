"""The flow of a row: which model learns in which stage, from which labels, at what cost, and to what accuracy.

A flow is a list of lanes, the teachers' before the student's, as JSON:
    who: T or S, or the role of one of several teachers; start: name of the model before training;
    start_accuracy, and `accuracy` of every step: set -> avg, empty where no row evaluated that model;
    steps: symbol, for example RL(1h), name and digest of the stage, labels, verifier_calls, sampled_tokens,
    teacher_scored_tokens: those of the stage and of the rollouts that were sampled for it; means over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from verl_s2d.recipe.method_rows import TEACHER_ROWS
from verl_s2d.report.row_results import RowResult

Lane = dict[str, Any]
COSTS = {
    "labels": "labels",
    "verifier_calls": "verifier calls",
    "sampled_tokens": "tokens sampled",
    "teacher_scored_tokens": "tokens scored",
}
"""Items of the ledger that a flow shows, with their names there."""
STUDENT, TEACHER = "S", "T"
PART_IN_FLOW = ("model", "teachers", "spent")
"""Keys of a stage's entry that only its flow is made of."""


def flows_of(rows: Sequence[RowResult]) -> dict[str, list[Lane]]:
    """Map the name of a row -> its flow; rows of stages whose inputs are unknown have none."""
    known = {(model, row.seed): row.result["sets"] for row in rows if (model := final_model(row))}
    by_name: dict[str, list[list[Lane]]] = {}
    for row in rows:
        if flow := _flow(row, {model: sets for (model, seed), sets in known.items() if seed == row.seed}):
            by_name.setdefault(row.name, []).append(flow)
    return {name: _mean(flows) for name, flows in by_name.items()}


def final_model(row: RowResult) -> str | None:
    """Return the digest or location of the model that the row evaluates; None where it is unknown."""
    return row.stages[-1].get("model") if row.stages else None


def teachers_of(row: RowResult) -> dict[str, str]:
    """Map model -> role of the teachers of a row's student, without models that it was trained from itself."""
    stages = {stage["digest"]: stage for stage in row.stages}
    chain = _chain(final_model(row), stages)
    own = [stage["digest"] for stage in chain]
    asked = {model: role for stage in chain for role, model in stage["teachers"].items()}
    return {model: role for model, role in asked.items() if model not in own}


def lanes_of(row: RowResult) -> dict[str, str]:
    """Map digest -> STUDENT or TEACHER for the training stages of a row."""
    stages = {stage["digest"]: stage for stage in row.stages}
    of_teachers = {stage["digest"]: TEACHER for model in teachers_of(row) for stage in _chain(model, stages)}
    own = TEACHER if row.name in TEACHER_ROWS else STUDENT
    return of_teachers | {stage["digest"]: own for stage in _chain(final_model(row), stages)}


def method_place(stage: Mapping[str, Any], lanes: Mapping[str, str]) -> int:
    """Place a stage in the method: the teacher's RL, 2a, 2b, the student's RL, anything else."""
    order = ("2a", "2b", "RL")
    symbol = stage.get("symbol", "").partition("(")[0]
    if lanes.get(stage["digest"]) == TEACHER:
        return 0
    return 1 + (order.index(symbol) if symbol in order else len(order))


def cost_lines(step: Mapping[str, Any]) -> list[str]:
    """Write what a step consumed, an item each: `128 labels`, `10,240 calls`, `40,282 tokens`."""
    return [f"{step[item]:,.0f} {name}" for item, name in COSTS.items() if step[item] or item == "labels"]


def flow_line(flow: Sequence[Mapping[str, Any]], set_name: str) -> str:
    """Write a flow in a line, with accuracies in percent where they are known."""
    return " | ".join(f"{lane['who']}: {' > '.join(_words(lane, set_name))}" for lane in flow)


def _words(lane: Mapping[str, Any], set_name: str) -> Iterator[str]:
    start = lane["start_accuracy"].get(set_name)
    if start is not None:
        yield f"{100 * start:.1f}"
    elif not lane["steps"]:
        yield "not trained"
    for step in lane["steps"]:
        reached = step["accuracy"].get(set_name)
        yield step["symbol"] if reached is None else f"{step['symbol']} {100 * reached:.1f}"


def _flow(row: RowResult, known: Mapping[str, Mapping[str, Any]]) -> list[Lane]:
    if (model := final_model(row)) is None:
        return []
    stages = {stage["digest"]: stage for stage in row.stages}
    teachers = teachers_of(row)
    named = [(role if len(teachers) > 1 else TEACHER, teacher) for teacher, role in teachers.items()]
    named.append((TEACHER if row.name in TEACHER_ROWS else STUDENT, model))
    return [_lane(who, one, stages, known) for who, one in named]


def _lane(who: str, model: str, stages: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]) -> Lane:
    chain = _chain(model, stages)
    start = chain[0]["model"] if chain else model
    steps = [
        {
            "symbol": stage["symbol"],
            "name": stage["name"].partition(" (seed ")[0],
            "digest": stage["digest"],
            **{item: stage["spent"][item] for item in COSTS},
            "accuracy": _averages(stage["digest"], known),
        }
        for stage in chain
    ]
    return {"who": who, "start": _name(start, stages), "start_accuracy": _averages(start, known), "steps": steps}


def _chain(model: str | None, stages: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """List the stages that a model was trained in, in order."""
    found: list[Mapping[str, Any]] = []
    while model in stages and stages[model].get("symbol"):
        found.insert(0, stages[model])
        model = stages[model]["model"]
    return found


def _name(model: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Name a model by its stage, or by the last part of its path or hub id."""
    return stages[model]["name"].partition(" (seed ")[0] if model in stages else model.rstrip("/").rpartition("/")[2]


def _averages(model: str, known: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: values["avg"] for name, values in known.get(model, {}).items()}


def _mean(flows: Sequence[list[Lane]]) -> list[Lane]:
    """Average the numbers of equal flows over seeds; a seed with other stages is left out."""
    first = flows[0]
    alike = [flow for flow in flows if _shape(flow) == _shape(first)]
    return [_mean_lane([flow[place] for flow in alike]) for place in range(len(first))]


def _mean_lane(lanes: Sequence[Lane]) -> Lane:
    steps = [
        steps[0]
        | {item: fmean(step[item] for step in steps) for item in COSTS}
        | {"accuracy": _mean_accuracy([step["accuracy"] for step in steps])}
        for steps in zip(*(lane["steps"] for lane in lanes), strict=True)
    ]
    return lanes[0] | {"start_accuracy": _mean_accuracy([lane["start_accuracy"] for lane in lanes]), "steps": steps}


def _mean_accuracy(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average over seeds on the sets that all have."""
    return {name: fmean(sets[name] for sets in of_seeds) for name in of_seeds[0] if all(name in s for s in of_seeds)}


def _shape(flow: Sequence[Lane]) -> list[tuple[str, list[str]]]:
    return [(lane["who"], [step["symbol"] for step in lane["steps"]]) for lane in flow]
