"""Check that a built-in verifier can use every answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.errors import Faults, UserError
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem


def check_answers(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]) -> None:
    """Check every answer with a built-in verifier; a recipe's own is only tried (verifier_trial.py).

    Args:
        files: file -> (its name in messages, its problems).

    Raises:
        UserError: for each file, the first answer that the verifier cannot use; a data source without a verifier, or a
            verifier of a data source that no problem has.
    """
    chosen = plan.recipe.verifier
    if isinstance(chosen, str) and ":" in chosen:
        return
    from verl_s2d.verifiers.registry import by_data_source, check_answer

    faults = Faults()
    several = by_data_source(chosen)
    if several is not None:
        with faults.collected():
            _require_matching_sources(set(several), files)
    for key, problems in files.values():
        for problem in problems:
            try:
                check_answer(chosen, problem.data_source, problem.ground_truth, problem.extra_info)
            except UserError as error:
                faults.add(
                    UserError(
                        f"{error.problem.rstrip('.')} (problem {problem.id}).",
                        key=f"{key}: {error.key}",
                        value=error.value,
                        remedy=error.remedy,
                    )
                )
                break
    faults.raise_found()


def _require_matching_sources(verified: set[str], files: Mapping[Path, tuple[str, list[Problem]]]) -> None:
    """Refuse problems of other data sources than these, and data sources without problems."""
    found = {problem.data_source for _, problems in files.values() for problem in problems}
    if missing := sorted(found - verified):
        raise UserError(
            "These data sources have no verifier.",
            key="verifier",
            value=", ".join(missing),
            remedy=f"Name one for each; `verifier:` has {', '.join(sorted(verified))}.",
        )
    # Without files a script has not made them yet.
    if files and (unused := sorted(verified - found)):
        raise UserError(
            "No problem is from these data sources, so their verifiers have no effect.",
            key="verifier",
            value=", ".join(unused),
            remedy=f"Leave them out, or correct their names; the data has {', '.join(sorted(found))}.",
        )
