"""Run `verl-s2d check`: software, GPUs, registration; with a recipe also models, data and every stage's settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from verl_s2d.checks.accelerators import MachineProbe, judge_flash_attention
from verl_s2d.checks.answers import check_answers
from verl_s2d.checks.batch_sizes import check_batches
from verl_s2d.checks.composition import CompositionProbe
from verl_s2d.checks.data_slices import check_data
from verl_s2d.checks.disk_space import check_disk
from verl_s2d.checks.model_pairs import check_models, models_of_rows
from verl_s2d.checks.packages import check_packages
from verl_s2d.checks.registration import RegistrationProbe
from verl_s2d.checks.rendered_prompts import check_prompts
from verl_s2d.checks.samplers import cache_warnings, check_samplers
from verl_s2d.checks.software import check_verifier, check_versions
from verl_s2d.checks.verifier_trial import try_on_data
from verl_s2d.checks.verl_keys import check_verl_keys
from verl_s2d.data.model_files import ModelFacts
from verl_s2d.errors import UserError
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.workflow.hosts.external_cluster import ask_for_check
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.runner import stage_environment
from verl_s2d.workflow.store.manifest import installed_versions


@dataclass(frozen=True)
class Finding:
    """One line of the check."""

    what: str
    ok: bool
    detail: str

    def text(self) -> str:
        first, *rest = self.detail.splitlines() or [""]
        return "\n".join(
            [f"{'ok  ' if self.ok else 'FAIL'} {self.what}: {first}", *(f"       {line}" for line in rest)]
        )


def check_everything(plan: Plan | None) -> list[Finding]:
    """Return all findings, good and bad; with a plan also those about its recipe."""
    device = plan.context.device if plan else ("cuda" if accelerator_here() else "cpu")
    findings = [_attempt("versions", _versions), *_machine_and_registration(device)]
    if plan is None:
        return [*findings, Finding(*judge_flash_attention(device != "cpu"))]
    return [
        *findings,
        _attempt("verifier", lambda: check_verifier(plan) or str(plan.recipe.verifier)),
        _attempt("verl keys", lambda: check_verl_keys(plan.order) or "all known to verl"),
        *_ray_cluster(plan),
        _attempt("batch sizes", lambda: check_batches(plan, plan.order) or "fit slices and cluster"),
        _attempt("engines that sample", lambda: check_samplers(plan, plan.order) or "fit this machine and the models"),
        _attempt("teacher rollouts", lambda: "\n".join(cache_warnings(plan, plan.order)) or "most of them are read"),
        _attempt("data", lambda: _data(plan)),
        _attempt("scores", lambda: "\n".join(try_on_data(plan, check_data(plan)))),
        _attempt("prompts", lambda: check_prompts(plan, check_data(plan))),
        *_models(plan),
        *_composition(plan),
    ]


def _ray_cluster(plan: Plan) -> list[Finding]:
    """Check that the cluster of RAY_ADDRESS, if set, has the resources of the recipe's stages."""
    if not os.environ.get("RAY_ADDRESS"):
        return []
    needs, environment = plan.ray_demand, stage_environment(plan.context.device)
    return [_attempt("Ray cluster", lambda: ask_for_check(needs, environment))]


def _data(plan: Plan) -> str:
    files = check_data(plan)
    check_answers(plan, files)
    return f"no problem is in two slices, none is evaluated on; the verifier takes the answers of {len(files)} files"


def _composition(plan: Plan) -> list[Finding]:
    """Check that verl accepts every stage's configuration and that the disk has room for the results."""
    what = "verl's own checks"
    try:
        with CompositionProbe(plan, plan.order, stage_environment(plan.context.device)) as probe:
            settings = probe.check()
        warnings = check_packages(settings, plan.context.device)
    except UserError as error:
        return [Finding(what, False, str(error))]
    detail = "\n".join([f"accept the configuration of {len(settings)} training stages", *warnings])
    return [Finding(what, True, detail), _attempt("disk", lambda: check_disk(plan, settings))]


def _machine_and_registration(device: str) -> list[Finding]:
    environment = stage_environment(device)
    with MachineProbe(environment, device) as machine, RegistrationProbe(environment) as registration:
        return [*(Finding(*line) for line in machine.lines()), Finding("registration", *registration.result())]


def _versions() -> str:
    check_versions()
    return ", ".join(f"{name} {version}" for name, version in installed_versions().items())


def _models(plan: Plan) -> list[Finding]:
    """Describe each model, then check that they fit together."""
    try:
        of_seeds = [models for models, _ in models_of_rows(plan)]
        findings = [Finding(role, True, _describe(model)) for role, model in of_seeds[0].items()]
    except UserError as error:
        return [Finding("models", False, str(error))]
    for role in sorted(plan.recipe.models.keys() - of_seeds[0].keys()):
        findings.append(
            Finding(role, True, "not made yet (checked when its script has run), or not used by these rows")
        )

    def agreement() -> str:
        warnings = check_models(plan)
        if len(of_seeds[0]) < 2:
            return "nothing to compare yet"
        return "\n".join(["tokenizers agree id by id, both vocabularies cover them", *warnings])

    return [*findings, _attempt("teacher and student", agreement)]


def _describe(model: ModelFacts) -> str:
    template = "with" if model.chat_template else "without"
    return (
        f"{model.directory}\n{len(model.tokens)} tokens, vocabulary {model.vocabulary}, "
        f"end of sequence {sorted(model.eos)}, context {model.context}, {template} chat template"
    )


def _attempt(what: str, act: Any) -> Finding:
    try:
        return Finding(what, True, str(act()))
    except UserError as error:
        return Finding(what, False, str(error))
