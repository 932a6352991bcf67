"""Plan a pilot from ordinary nodes with fewer labels and steps.

Round j brings every model to n_j = 2^j N / smallest labels: it goes on from the model of the round before with the
second half of the first n_j labels. So all rounds together cost the labels and steps of the last one alone. From each
teacher so trained the student takes `updates` steps of 2b, without 2a.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_s2d.data.label_split import HALF
from verl_s2d.errors import UserError
from verl_s2d.planner.pilot_stages import EVERY, STEP, PilotScores, Transfer, model_steps
from verl_s2d.planner.prediction import Candidate
from verl_s2d.platforms.device import resolve_device
from verl_s2d.recipe.alarm_settings import Alarms
from verl_s2d.recipe.method_rows import SIGNALS
from verl_s2d.recipe.planner_settings import STUDENT, Planner
from verl_s2d.recipe.schema import Recipe
from verl_s2d.recipe.teacher_rows import row_of
from verl_s2d.stages.builder import Builder
from verl_s2d.stages.prepare.stage import VALIDATION
from verl_s2d.stages.problem_inputs import template_settings
from verl_s2d.stages.row_inputs import Model
from verl_s2d.stages.row_settings import sampler_operations
from verl_s2d.workflow.graph import Node, build_order
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan, Row, default_run_dir
from verl_s2d.workflow.stage import Context

_TRAINED_BY = {STUDENT: "student_rl"}
"""Role -> section of the stage that trains it; every other one is a teacher."""


@dataclass(frozen=True)
class TransferNodes:
    """A transfer from one teacher, and the scores of its models in the order of their steps."""

    kind: str
    teacher: str
    labels: int
    node: Node
    scores: list[Node]


@dataclass(frozen=True)
class Round:
    """The nodes of one round.

    Attributes:
        labels: number of labels that a model has read after it.
        scores: role -> scores of the model that GRPO has trained.
    """

    labels: int
    scores: Mapping[str, Node]
    transfers: Sequence[TransferNodes]

    @property
    def targets(self) -> list[Node]:
        return [*self.scores.values(), *(node for transfer in self.transfers for node in transfer.scores)]


class PilotBuilder(Builder):
    """Builds single stages of a pilot."""

    def scores(self, model: Model, name: str, step: int | None = None) -> Node:
        """Sample and score answers at temperature 1 on problems that the pilot does not train on.

        Args:
            step: of a transfer's model.
        """
        chosen = self.recipe.planner
        settings: dict[str, Any] = {
            "slice": "2h",
            "samples": chosen.samples,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": self.recipe.data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        inputs = {"model": model, "slices": self.slices("all"), **self._verifier(settings)}
        if self.recipe.data.validation is not None:
            settings |= {"slice": "all", VALIDATION: True}
            inputs |= self._problems.of(VALIDATION)
        if step is not None:
            settings[STEP] = step
        return self.node(PilotScores(), name, settings, sampler_operations(chosen, settings), **inputs)

    def rl(self, role: str, model: Model, slice_name: str, steps: int, labels: int) -> Node:
        """Train a model by GRPO on more labels."""
        key = _TRAINED_BY.get(role, "teacher_rl")
        node = self._grpo(key, "pilot-rl", model, slice_name, steps=steps)
        return replace(node, name=f"rl-{role}-{labels}")

    def transfer(self, kind: str, role: str, teacher: Model, labels: int) -> Node:
        """Train the student by 2b from a teacher, with a model every few steps."""
        chosen = self.recipe.planner.pilot
        signal = None if kind == "opd" else SIGNALS[kind]
        frozen = {"base": self.model(role), STUDENT: self.model(STUDENT)}
        node = self.opd(self.model(STUDENT), teacher, "all", signal=signal, frozen=frozen, steps=chosen.updates + 1)
        settings = {**node.settings, EVERY: chosen.evaluate_every}
        return replace(node, stage=Transfer(), name=f"{kind}-{role}-{labels}", settings=settings)


class PilotPlan:
    """A pilot's rounds, each planned once the one before has been read.

    Args:
        recipe: the recipe of the full run.
        roles: of the teacher candidates.

    Raises:
        UserError: the recipe cannot have a pilot.
    """

    def __init__(self, recipe: Recipe, roles: Sequence[str], seed: int, context: Context):
        self.recipe, self.teachers, self.seed, self.context = recipe, tuple(roles), seed, context
        self._externals: dict[Any, External] = {}
        self.chosen = recipe.planner.pilot
        self.total = self._builder(recipe).slice_sizes()["all"]
        smallest = self.total // self.chosen.smallest
        if smallest < 2:
            raise UserError(
                f"The first round of the pilot would train on {smallest} of {self.total} labels.",
                key="planner.pilot.smallest",
                value=self.chosen.smallest,
                remedy=f"At most {self.total // 2}, or use more labels.",
            )
        self.labels = [smallest * 2**j for j in range(self.chosen.rounds)]
        self._models: dict[str, Model] = {role: self._whole.model(role) for role in (STUDENT, *roles)}
        self._steps = dict.fromkeys(self._models, 0)
        self._check_batches()

    def candidates(self, roles: Iterable[str]) -> list[Candidate]:
        """List the ways to spend the labels, by the names of their rows."""
        found = []
        for name in self.chosen.candidates:
            if name == "direct-grpo":
                found.append(Candidate(name))
                continue
            share = 1 - self.recipe.data.split if name == "half-split" else 0.0
            kind = name if name in SIGNALS else "opd"
            found += [Candidate(row_of(name, role), role, share, kind) for role in roles]
        return found

    def start(self) -> dict[str, Node]:
        """Build the scores of all models before training, by role."""
        return {role: self._scored(model, f"scores-{role}") for role, model in self._models.items()}

    def round(self, number: int, roles: Iterable[str], transfers: Iterable[tuple[str, str]]) -> Round:
        """Build a round.

        Args:
            number: of the round, from 0.
            roles: of the models that are trained in it.
            transfers: (kind, role of the teacher) of what the student is taught.
        """
        labels = self.labels[number]
        scores: dict[str, Node] = {}
        for role in roles:
            self._models[role] = self._trained(role, number)
            scores[role] = self._scored(self._models[role], f"scores-{role}-{labels}")
        made = [self._transferred(kind, role, labels) for kind, role in transfers]
        return Round(labels, scores, made)

    def outcome(self, model: Model, row: str) -> Node:
        """Build the scores of a full run's model on the same problems."""
        return self._scored(model, f"scores-of-{row}")

    def plan(self, targets: Iterable[Node]) -> Plan:
        """Return a plan that builds these nodes. `gc` keeps the targets of its rows, so every node is one."""
        return Plan(self.recipe, [Row(node.name, self.seed, node) for node in build_order(targets)], self.context)

    @property
    def _whole(self) -> PilotBuilder:
        return self._builder(self.recipe)

    def _builder(self, recipe: Recipe) -> PilotBuilder:
        return PilotBuilder(recipe, "pilot", self.seed, self.context.device, self._externals)

    def _with_labels(self, labels: int) -> PilotBuilder:
        """Return a builder whose labels are the first so many, and whose alarms stop nothing."""
        recipe, stages = self.recipe, self.recipe.stages
        changed = {
            name: stage.model_copy(
                update={"alarms": {}, "until": None, "validate_every": None} if name != "opd" else self._bridge()
            )
            for name, stage in stages
            if name in ("teacher_rl", "student_rl", "opd") and stage is not None
        }
        update = {
            "data": recipe.data.model_copy(update={"labels": labels, "split": HALF}),
            "stages": stages.model_copy(update=changed),
            "alarms": Alarms(),
        }
        return self._builder(recipe.model_copy(update=update))

    def _bridge(self) -> dict[str, Any]:
        stage = self.recipe.stages.opd
        keep = {"trainer.max_actor_ckpt_to_keep": None}
        return {
            "alarms": {},
            "until": None,
            "save_every": self.chosen.evaluate_every,
            "save_minutes": None,
            "travel": True,
            "verl": {**stage.verl, **keep},
        }

    def _scored(self, model: Model, name: str, step: int | None = None) -> Node:
        labels = max(2 * self.recipe.planner.problems, 2 * self.labels[-1])
        return self._with_labels(min(self.total, labels)).scores(model, name, step)

    def _trained(self, role: str, number: int) -> Node:
        """Train a model on the labels of a round that it has not read yet."""
        labels, key = self.labels[number], _TRAINED_BY.get(role, "teacher_rl")
        builder = self._with_labels(labels)
        until = math.ceil(builder.steps(key) * labels / self.total)
        steps = max(1, until - self._steps[role])
        self._steps[role] += steps
        return builder.rl(role, self._models[role], "2h" if number else "all", steps, labels)

    def _transferred(self, kind: str, role: str, labels: int) -> TransferNodes:
        # All transfers read the same prompts, none of them of a problem that is scored.
        node = self._with_labels(self.labels[-1]).transfer(kind, role, self._models[role], labels)
        scores = [self._scored(node, f"scores-{node.name}-step-{step}", step) for step in model_steps(node)]
        return TransferNodes(kind, role, labels, node, scores)

    def _check_batches(self) -> None:
        from verl_s2d.stages.shared.batch_settings import TRAIN
        from verl_s2d.verl_settings.overrides import value_of

        for key in ("teacher_rl", "student_rl"):
            stage = getattr(self.recipe.stages, key)
            batch = value_of(stage.verl, TRAIN) if stage is not None else None
            if isinstance(batch, int) and batch > self.labels[0]:
                raise UserError(
                    f"A batch of stages.{key} has more problems than the first round of the pilot, "
                    f"{self.labels[0]} of {self.total} labels.",
                    key="planner.pilot.smallest",
                    value=self.chosen.smallest,
                    remedy=f"At most {self.total // batch}, or a smaller {TRAIN}, or more labels.",
                )


def pilot_plan(recipe: Recipe, *, run_dir: Path | None = None, seeds: Sequence[int] | None = None) -> PilotPlan:
    """Plan the pilot of a recipe, for its first seed unless one is given.

    Raises:
        UserError: several seeds, no teacher, no student, or too few labels.
    """
    if seeds is not None and len(seeds) != 1:
        raise UserError("A pilot has one seed.", key="--seeds", value=list(seeds), remedy="Give one seed.")
    planner, device = recipe.planner or Planner(), resolve_device(recipe.cluster.device)
    roles = planner.candidates(recipe.models)
    if STUDENT not in recipe.models:
        raise UserError("The pilot has no student.", key=f"models.{STUDENT}", remedy="Give `student:`.")
    context = Context(run_dir.resolve() if run_dir else default_run_dir(recipe), recipe.cluster.on(device), device)
    return PilotPlan(recipe.model_copy(update={"planner": planner}), roles, (seeds or recipe.seeds)[0], context)
