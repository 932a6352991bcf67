"""List the checks of a plan's inputs, cheap ones first. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.checks.accelerators import check_vllm
from verl_s2d.checks.finding import Finding, Told
from verl_s2d.checks.inputs.answers import check_answers
from verl_s2d.checks.inputs.batch_sizes import check_batches, check_engines
from verl_s2d.checks.inputs.compared_models import check_compared
from verl_s2d.checks.inputs.data_slices import check_counts, check_data
from verl_s2d.checks.inputs.model_pairs import KnownModels, check_models, describe, models_of_rows
from verl_s2d.checks.inputs.rendered_prompts import check_prompts
from verl_s2d.checks.inputs.routing import check_routing_of_slices
from verl_s2d.checks.inputs.samplers import cache_warnings, check_samplers
from verl_s2d.checks.inputs.saved_files import check_saved_files
from verl_s2d.checks.inputs.teacher_prompts import check_teacher_prompts
from verl_s2d.checks.inputs.verifier_trial import try_on_data
from verl_s2d.checks.inputs.verl_keys import check_verl_keys
from verl_s2d.checks.software import check_trackers, check_verifier, check_versions
from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.errors import UserError
from verl_s2d.platforms.provenance import installed_versions
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem


class Inputs:
    """A plan, the nodes to check, and the files that several checks read.

    Raises:
        UserError: on access, a file cannot be used.
    """

    def __init__(self, plan: Plan, nodes: Sequence[Node]):
        self.plan, self.nodes = plan, nodes

    @cached_property
    def files(self) -> dict[Path, tuple[str, list[Problem]]]:
        """Problems of each file, with the file's name in messages."""
        return check_data(self.plan)

    @property
    def labelled(self) -> dict[Path, tuple[str, list[Problem]]]:
        """Problems of the files that have answers."""
        return {path: file for path, file in self.files.items() if file[0] != PROMPTS}

    @cached_property
    def models(self) -> KnownModels:
        """Models that exist, and pairs that are distilled, for every seed."""
        return models_of_rows(self.plan)


@dataclass(frozen=True)
class InputCheck:
    """A check and the names of those that it rests on.

    Attributes:
        look: raises UserError for what it refuses.
    """

    what: str
    look: Callable[[Inputs], Told]
    needs: tuple[str, ...] = ()


def findings(checks: Sequence[InputCheck], inputs: Inputs, failed: set[str]) -> Iterator[Finding]:
    """Yield the finding of each check; names of those that fail, or rest on one that has, are added to `failed`."""
    for check in checks:
        causes = [name for name in check.needs if name in failed]
        if causes:
            finding = Finding(check.what, None, f"not looked at: {' and '.join(causes)} first")
        else:
            try:
                finding = Finding(check.what, True, check.look(inputs).text())
            except UserError as error:
                finding = Finding.refusal(check.what, error)
        if not finding.ok:
            failed.add(check.what)
        yield finding


def _versions(_: Inputs) -> Told:
    check_versions()
    return Told(", ".join(f"{name} {version}" for name, version in installed_versions().items()))


def _verifier(inputs: Inputs) -> Told:
    check_verifier(inputs.plan)
    return Told(str(inputs.plan.recipe.verifier))


def _trackers(inputs: Inputs) -> Told:
    check_trackers(inputs.plan.recipe.logger)
    return Told(", ".join(inputs.plan.recipe.logger) or "none; metrics are in the run directory")


def _verl_keys(inputs: Inputs) -> Told:
    check_verl_keys(inputs.nodes)
    return Told("all known to verl")


def _counts(inputs: Inputs) -> Told:
    check_counts(inputs.plan)
    return Told("enough, as far as they are there")


def _batches(inputs: Inputs) -> Told:
    check_batches(inputs.plan, inputs.nodes)
    return Told("fit the slices")


def _engines(inputs: Inputs) -> Told:
    check_engines(inputs.plan, inputs.nodes)
    return Told("parallel sizes fit the cluster")


def _samplers(inputs: Inputs) -> Told:
    check_samplers(inputs.plan, inputs.nodes)
    check_vllm(inputs.nodes, inputs.plan.context.device)
    return Told("fit this machine and the models")


def _compared(inputs: Inputs) -> Told:
    pairs = check_compared(inputs.plan, inputs.nodes)
    return Told(f"{pairs} fit the device together" if pairs else "no stage compares models")


def _rollouts(inputs: Inputs) -> Told:
    warnings = cache_warnings(inputs.plan, inputs.nodes)
    return Told("some are sampled for nothing" if warnings else "most of them are read", warnings)


def _data(inputs: Inputs) -> Told:
    check_answers(inputs.plan, inputs.labelled)
    names = ", ".join(key for key, _ in inputs.labelled.values())
    if not names:
        return Told("looked at when its script has run")
    pool = sum(len(prompts) for key, prompts in inputs.files.values() if key == PROMPTS)
    beside = f"; {pool:,} prompts have no labels" if pool else ""
    return Told(f"no problem is in two slices, none is evaluated on; the verifier takes the answers of {names}{beside}")


def _routing(inputs: Inputs) -> Told:
    checked = check_routing_of_slices(inputs.plan, inputs.nodes, inputs.files)
    return Told(f"every problem has one in {', '.join(checked)}" if checked else "no stage has several, or no data yet")


def _scores(inputs: Inputs) -> Told:
    return try_on_data(inputs.plan, inputs.labelled)


def _models(inputs: Inputs) -> Told:
    return describe(inputs.plan, inputs.models)


def _pairs(inputs: Inputs) -> Told:
    return check_models(inputs.plan, inputs.models)


def _saved(inputs: Inputs) -> Told:
    return check_saved_files(inputs.plan, inputs.models)


def _prompts(inputs: Inputs) -> Told:
    return check_prompts(inputs.plan, inputs.files, inputs.models)


def _teacher_prompts(inputs: Inputs) -> Told:
    return check_teacher_prompts(inputs.plan, inputs.files, inputs.models)


DATA, MODELS = "data", "models"
AT_ONCE = (
    InputCheck("versions", _versions),
    InputCheck("verl keys", _verl_keys),
    InputCheck("verifier", _verifier),
    InputCheck("trackers", _trackers),
    InputCheck("training problems", _counts),
    InputCheck("batch sizes", _batches, ("verl keys", "training problems")),
    InputCheck("engines that train", _engines, ("verl keys", "batch sizes")),
    InputCheck("teacher rollouts", _rollouts, ("batch sizes",)),
)
"""Checks that need the recipe and little else; verl would only repeat what they refuse."""
IN_SECONDS = (
    InputCheck("engines that sample", _samplers),
    InputCheck("pairs of models", _compared),
    InputCheck(MODELS, _models),
    InputCheck("teacher and student", _pairs, (MODELS,)),
    InputCheck(DATA, _data, ("verifier",)),
    InputCheck("teachers of data sources", _routing, (DATA,)),
    InputCheck("scores", _scores, (DATA,)),
    InputCheck("saved models", _saved, (MODELS,)),
    InputCheck("prompts", _prompts, (DATA, MODELS)),
    InputCheck("teacher's prompts", _teacher_prompts, ("prompts",)),
)
"""Checks that read models and data, or look at this machine: verl is asked whatever they find."""
