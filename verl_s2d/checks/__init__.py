"""Refuse a plan's errors before it costs anything. Nothing here imports torch."""

from __future__ import annotations

from verl_s2d.checks.input_checks import AT_ONCE, IN_SECONDS, Inputs
from verl_s2d.errors import Faults, UserError
from verl_s2d.workflow.plan import Plan


def check_plan(plan: Plan) -> list[str]:
    """Check the inputs of a plan's missing stages, as far as they exist.

    Models and data that a recipe's own script makes need another call after the script has run.

    Returns:
        Warnings about allowed differences.

    Raises:
        UserError: the faults of the recipe, or else those of its models and data.
    """
    missing, warnings = plan.missing(), []
    inputs = Inputs(plan, missing)
    for checks in (AT_ONCE, IN_SECONDS) if missing else ():
        faults, failed = Faults(), set()
        for check in checks:
            try:
                if failed.isdisjoint(check.needs):
                    warnings += check.look(inputs).warnings
                    continue
            except UserError as error:
                faults.add(error)
            failed.add(check.what)
        faults.raise_found()
    return warnings
