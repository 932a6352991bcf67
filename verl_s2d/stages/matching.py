"""Match a row to another one: its last stage gets a budget instead of the recipe's steps.

Labels and updates are known at planning time and become a number of steps. Verifier calls and sampled tokens are read
from the other row's ledger once it is built: that row's last stage becomes an input of the matched stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from verl_s2d.errors import UserError
from verl_s2d.recipe.matched import Matched
from verl_s2d.stages.prepare.stage import SOURCES
from verl_s2d.stages.shared.batch_settings import (
    TRAIN,
    batch_setting,
    require_batch_sizes,
    rows_read,
    sequences_per_step,
)
from verl_s2d.stages.shared.budget import UNTIL, words
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.workflow.graph import MATCHED, Node, lineage
from verl_s2d.workflow.identity import External


def matched_model(
    name: str, chosen: Matched, model: Node | External, target: Node | External, sizes: Callable[[], Mapping[str, int]]
) -> Node:
    """Build the last stage of row `chosen.row` with the budget of `chosen`.

    Args:
        name: name of the matched row.
        model, target: last stages of the rows `chosen.row` and `chosen.to`.
        sizes: returns slice name -> number of problems; raises UserError while the numbers are not known.

    Raises:
        UserError: the rows cannot be matched.
    """
    return _Match(name, chosen, sizes).stage(model, target)


class _Match:
    def __init__(self, name: str, chosen: Matched, sizes: Callable[[], Mapping[str, int]]):
        self._name, self._chosen, self._sizes = name, chosen, sizes

    def stage(self, model: Node | External, target: Node | External) -> Node:
        row, to, by = self._chosen.row, self._chosen.to, self._chosen.by
        if not isinstance(model, Node) or "updates" not in model.stage.consumes:
            self._refuse(f"Row {row} trains nothing that could be stopped.", "row", row, "Name a row that trains.")
        able = model.stage.consumes
        if by not in able:
            self._refuse(
                f"The last stage of row {row}, {model.name}, consumes no {words(by)}, so they cannot stop it.",
                "by",
                by,
                f"One of {', '.join(able)}, or another row.",
            )
        goal = lineage(target) if isinstance(target, Node) else []
        before = [node for node in lineage(model) if node is not model]
        if not _consumers(goal, by):
            self._refuse(f"Row {to} consumes no {words(by)}.", "to", to, "Name a row that does.")
        if _consumers(goal, by) <= _consumers(before, by):
            self._refuse(
                f"The stages of row {row} before its last one include all of row {to}'s that consume {words(by)}, "
                "so nothing would be left for the last one.",
                "to",
                to,
                "Match it to a row that consumes more.",
            )
        for node in (model, *goal, *before):
            if isinstance(node.stage, VerlTrainerStage):
                require_batch_sizes(node)
        return self._with_budget(model, target, goal, before)

    def _with_budget(self, model: Node, target: Node, goal: list[Node], before: list[Node]) -> Node:
        by, per_step = self._chosen.by, self._per_step(model)
        total, spent = self._planned(goal), self._planned(before)
        known = total is not None and spent is not None
        if known and total - spent < per_step:
            self._refuse(
                f"Row {self._chosen.to} consumes {total:,} {words(by)}, of which the stages before {model.name} leave "
                f"{max(0, total - spent):,}; one step of it takes {per_step:g}.",
                "to",
                self._chosen.to,
                "Match it to a row that consumes more, or make the batch smaller.",
            )
        matched = {"by": by, "to": self._chosen.to}
        # The budget takes the place of the stage's own end.
        without_rules = {key: value for key, value in model.settings.items() if key != UNTIL}
        if by in ("labels", "updates"):
            if not known:
                self._refuse(
                    f"The number of {words(by)} that row {self._chosen.to} consumes is itself set by a match.",
                    "to",
                    self._chosen.to,
                    "Match to a row that is not matched, or by another item.",
                )
            if by == "labels":
                self._check_one_pass(model, before, total - spent)
            settings = {**without_rules, "steps": math.ceil((total - spent) / per_step)}
            settings["matched"] = {**matched, "budget": total}
            inputs = self._with_rollouts(model, settings)
        else:
            settings, inputs = {**without_rules, "steps": None, "matched": matched}, {**model.inputs, MATCHED: target}
        operations = {**model.operations, "row": self._name}
        return replace(
            model, name=_renamed(model.name, self._name), settings=settings, inputs=inputs, operations=operations
        )

    def _with_rollouts(self, model: Node, settings: Mapping[str, Any]) -> Mapping[str, Node]:
        """Choose the matched stage's inputs: a warmup that reads more rollouts than its row's cache gets its own."""
        rollouts = model.inputs.get("rollouts")
        if rollouts is None or "rows" not in rollouts.settings:
            return model.inputs
        rows = rows_read(settings)
        if rows <= rollouts.settings["rows"]:
            return model.inputs
        name = _renamed(rollouts.name, self._name)
        return {**model.inputs, "rollouts": replace(rollouts, name=name, settings={**rollouts.settings, "rows": rows})}

    def _per_step(self, node: Node) -> float:
        """Return the consumption of one step; for tokens the minimum."""
        if self._chosen.by == "updates":
            return node.stage.updates_per_step(node)
        return batch_setting(node, TRAIN) if self._chosen.by == "labels" else sequences_per_step(node)

    def _planned(self, nodes: Iterable[Node]) -> int | None:
        """Sum the planned consumption of stages; None when it is known only after they have run."""
        by = self._chosen.by
        nodes = [node for node in nodes if by in node.stage.consumes]
        trained = [node for node in nodes if node.stage.trains]
        if nodes and (by == "sampled_tokens" or any(node.settings["steps"] is None for node in trained)):
            return None
        if by == "labels":
            return self._labels(nodes)
        if len(trained) < len(nodes):
            return None
        return round(sum(node.settings["steps"] * self._per_step(node) for node in nodes))

    def _labels(self, nodes: Iterable[Node]) -> int:
        """Count the labels read: for each slice the maximum over its stages, summed because halves are disjoint."""
        read: dict[str, int] = {}
        for node in nodes:
            self._require_all_sources(node)
            name = node.settings["slice"]
            size = self._sizes()[name]
            if not node.stage.trains:
                read[name] = size
                continue
            batch = batch_setting(node, TRAIN)
            asked = node.settings["steps"] * batch
            if asked > size - size % batch and size % batch:
                self._refuse(
                    f"How many labels {node.name} reads is not known in advance: it goes over its {size} problems more "
                    f"than once in batches of {batch}, which leave others out each time.",
                    "by",
                    "labels",
                    f"Choose data.labels so that {batch} divides its slices, or match by another item.",
                )
            read[name] = max(read.get(name, 0), min(size, asked))
        return sum(read.values())

    def _check_one_pass(self, model: Node, before: Iterable[Node], labels: int) -> None:
        """Raise UserError unless the stage reads fresh labels in a first pass: only then each step adds a batch."""
        self._require_all_sources(model)
        name, batch = model.settings["slice"], batch_setting(model, TRAIN)
        if any(node.settings["slice"] == name for node in before if "labels" in node.stage.consumes):
            self._refuse(
                f"{model.name} reads labels that stages before it have read already.",
                "by",
                "labels",
                "Match by verifier_calls, sampled_tokens or updates.",
            )
        size = self._sizes()[name]
        if labels > size - size % batch:
            self._refuse(
                f"{model.name} would have to read {labels} labels; a pass over its {size} problems in batches of "
                f"{batch} reads {size - size % batch}.",
                "to",
                self._chosen.to,
                "Match it to a row that reads fewer labels, or by another item.",
            )

    def _require_all_sources(self, node: Node) -> None:
        if SOURCES in node.inputs["slices"].settings:
            self._refuse(
                f"How many labels {node.name} reads is not known in advance: its slice has problems of some data "
                "sources only.",
                "by",
                "labels",
                "Match by verifier_calls, sampled_tokens or updates.",
            )

    def _refuse(self, problem: str, field: str, value: str, remedy: str) -> NoReturn:
        raise UserError(problem, key=f"matched.{self._name}.{field}", value=value, remedy=remedy)


def _renamed(stage: str, row: str) -> str:
    """Rename a stage for the matched row; a seed stays at the end."""
    stem, space, seed = stage.partition(" ")
    return f"{stem}-{row}{space}{seed}"


def _consumers(nodes: Iterable[Node], by: str) -> set[str]:
    return {node.digest for node in nodes if by in node.stage.consumes}
