"""Refuse a plan's errors before it costs anything. Nothing here imports torch."""

from __future__ import annotations

from verl_s2d.checks.accelerators import check_vllm
from verl_s2d.checks.answers import check_answers
from verl_s2d.checks.batch_sizes import check_batches
from verl_s2d.checks.data_slices import check_data
from verl_s2d.checks.model_pairs import check_models
from verl_s2d.checks.rendered_prompts import check_prompts
from verl_s2d.checks.samplers import cache_warnings, check_samplers
from verl_s2d.checks.software import check_verifier, check_versions
from verl_s2d.checks.verifier_trial import try_on_data
from verl_s2d.checks.verl_keys import check_verl_keys
from verl_s2d.workflow.plan import Plan


def check_plan(plan: Plan) -> list[str]:
    """Check the inputs of a plan's missing stages, as far as they exist.

    Models and data that a recipe's own script makes need another call after the script has run.

    Returns:
        Warnings about allowed differences.

    Raises:
        UserError: the first problem found.
    """
    missing = plan.missing()
    if not missing:
        return []
    check_versions()
    check_verifier(plan)
    check_verl_keys(missing)
    problems = check_data(plan)
    check_batches(plan, missing)
    check_samplers(plan, missing)
    check_vllm(missing, plan.context.device)
    check_answers(plan, problems)
    try_on_data(plan, problems)
    warnings = [*cache_warnings(plan, missing), *check_models(plan)]
    check_prompts(plan, problems)
    return warnings
