"""Plan a probe from ordinary nodes: scored samples of each model, and a comparison of the student with each teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_s2d.checks import check_plan
from verl_s2d.checks.finding import Finding, Told
from verl_s2d.errors import UserError
from verl_s2d.platforms.device import resolve_device
from verl_s2d.recipe.planner_settings import STUDENT, Planner
from verl_s2d.recipe.schema import Recipe
from verl_s2d.stages.builder import Builder
from verl_s2d.stages.compare.stage import STUDENT_SAMPLES, TEACHER_SAMPLES, Compare
from verl_s2d.stages.pass_rates.stage import PassRates
from verl_s2d.stages.problem_inputs import template_settings
from verl_s2d.stages.row_settings import sampler_operations
from verl_s2d.teachers.router import TEACHER
from verl_s2d.verifiers.registry import by_data_source, can_extract
from verl_s2d.workflow.graph import Node, build_order
from verl_s2d.workflow.plan import Plan, Row, default_run_dir
from verl_s2d.workflow.stage import Context

_SLICE = "all"


class PlannerSamples(PassRates):
    """Pass rates of a model that the planner looks at: engine keys are those of `planner:`."""

    section = "planner"


class ProbeBuilder(Builder):
    """Builds the nodes of a probe from a recipe whose labels are the planner's sample."""

    def samples(self, role: str) -> Node:
        """Sample and score the answers of a model at temperature 1."""
        chosen = self.recipe.planner
        settings: dict[str, Any] = {
            "slice": _SLICE,
            "samples": chosen.samples,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": self.recipe.data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        inputs = {"model": self.model(role), "slices": self.slices(), **self._verifier(settings)}
        return self.node(PlannerSamples(), f"samples-{role}", settings, sampler_operations(chosen, settings), **inputs)

    def compare(self, role: str, student: Node, teacher: Node) -> Node:
        """Compare the student with a candidate on the samples of both."""
        settings: dict[str, Any] = {"slice": _SLICE, **template_settings(self.recipe)}
        # Samples do not name their data source, so verifiers by data source do not read them.
        if can_extract(self.recipe.verifier) and by_data_source(self.recipe.verifier) is None:
            self._verifier(settings)
        inputs = {"model": self.model(STUDENT), TEACHER: self.model(role), "slices": self.slices()}
        inputs |= {STUDENT_SAMPLES: student, TEACHER_SAMPLES: teacher}
        return self.node(Compare(), f"compare-{role}", settings, **inputs)


@dataclass(frozen=True)
class ProbePlan:
    """A probe's plan, with the nodes of its numbers.

    Attributes:
        samples: role -> the node of its scored samples, the student first.
        pairs: role of a candidate -> the node that compares the student with it.
    """

    plan: Plan
    samples: Mapping[str, Node]
    pairs: Mapping[str, Node]

    @property
    def seed(self) -> int:
        return self.plan.rows[0].seed


def plan_probe(recipe: Recipe, *, run_dir: Path | None = None, seeds: Sequence[int] | None = None) -> ProbePlan:
    """Plan the probe of a recipe, for its first seed unless one is given.

    Raises:
        UserError: several seeds, no teacher, no student, an unknown role, or fewer labelled problems than the sample.
    """
    if seeds is not None and len(seeds) != 1:
        raise UserError("A probe is one sample of problems.", key="--seeds", value=list(seeds), remedy="Give one seed.")
    planner, device = recipe.planner or Planner(), resolve_device(recipe.cluster.device)
    roles = planner.candidates(recipe.models)
    planner.require_problems(recipe.data.labels)
    data = recipe.data.model_copy(update={"labels": planner.problems})
    sampled = recipe.model_copy(update={"data": data, "planner": planner})
    seed = (seeds or recipe.seeds)[0]
    builder = ProbeBuilder(sampled, "probe", seed, device, {})
    samples = {role: builder.samples(role) for role in (STUDENT, *roles)}
    pairs = {role: builder.compare(role, samples[STUDENT], samples[role]) for role in roles}
    context = Context(run_dir.resolve() if run_dir else default_run_dir(recipe), recipe.cluster.on(device), device)
    # `gc` keeps the target of every row: models that a script has made stay, though no row of the recipe reads them.
    nodes = build_order([*samples.values(), *pairs.values()])
    rows = [Row(f"probe of {node.name}", seed, node) for node in nodes]
    return ProbePlan(Plan(sampled, rows, context), samples, pairs)


def check_probe(recipe: Recipe, *, run_dir: Path | None = None, seeds: Sequence[int] | None = None) -> Finding:
    """Check a probe's inputs as `probe` does before it starts, for `verl-s2d check`."""
    what = "probe"
    try:
        probe = plan_probe(recipe, run_dir=run_dir, seeds=(seeds or recipe.seeds)[:1])
        warnings = check_plan(probe.plan)
    except UserError as error:
        return Finding.refusal(what, error)
    told = f"{len(probe.pairs)} teachers on {probe.plan.recipe.planner.problems} problems"
    return Finding(what, True, Told(told, warnings).text())
