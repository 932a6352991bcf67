"""Run `verl-s2d check`: software, GPUs, registration; with a recipe also models, data and every stage's settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from verl_s2d.checks.accelerators import judge_flash_attention
from verl_s2d.checks.disk_space import check_disk
from verl_s2d.checks.finding import Finding
from verl_s2d.checks.input_checks import AT_ONCE, IN_SECONDS, Inputs, findings
from verl_s2d.checks.packages import check_packages
from verl_s2d.checks.software import check_versions
from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.errors import UserError
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.platforms.provenance import installed_versions
from verl_s2d.workflow.hosts.external_cluster import ask_for_check
from verl_s2d.workflow.plan import Plan


def check_everything(plan: Plan | None) -> Iterator[Finding]:
    """Yield all findings, each as soon as it is known and cheap ones first; with a plan also those about its recipe.

    verl is not asked about stages whose settings are refused here.
    """
    if plan is None:
        yield from _software()
        return
    inputs, failed = Inputs(plan, plan.order), set()
    yield from findings(AT_ONCE, inputs, failed)
    if failed:
        causes = ", ".join(check.what for check in AT_ONCE if check.what in failed and failed.isdisjoint(check.needs))
        yield from findings(IN_SECONDS, inputs, failed)
        yield Finding("verl", None, f"not asked: {causes} first")
        return
    device = plan.context.device
    # It imports verl while this process reads models and data.
    with VerlProbe(device, stage_environment(device), plan, plan.order) as probe:
        yield from findings(IN_SECONDS, inputs, failed)
        if os.environ.get("RAY_ADDRESS"):
            yield _attempt("Ray cluster", lambda: ask_for_check(plan.ray_demand, stage_environment(device)))
        yield from _about_verl(probe)
        yield from _stages(plan, probe)


def _software() -> Iterator[Finding]:
    device = "cuda" if accelerator_here() else "cpu"
    yield _attempt("versions", _versions)
    with VerlProbe(device, stage_environment(device)) as probe:
        yield from _about_verl(probe)
    yield Finding(*judge_flash_attention(device != "cpu"))


def _versions() -> str:
    check_versions()
    return ", ".join(f"{name} {version}" for name, version in installed_versions().items())


def _about_verl(probe: VerlProbe) -> Iterator[Finding]:
    for line in probe.machine():
        yield Finding(*line)
    yield Finding("registration", *probe.registration())


def _stages(plan: Plan, probe: VerlProbe) -> Iterator[Finding]:
    """Check that verl accepts every stage's configuration and that the disk has room for the results."""
    what = "verl's own checks"
    try:
        settings = probe.stages()
        warnings = check_packages(settings, plan.context.device)
    except UserError as error:
        yield Finding.refusal(what, error)
        return
    yield Finding(what, True, "\n".join([f"accept the configuration of {len(settings)} training stages", *warnings]))
    yield _attempt("disk", lambda: check_disk(plan, settings))


def _attempt(what: str, act: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, act())
    except UserError as error:
        return Finding.refusal(what, error)
