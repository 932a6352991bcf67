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
        UserError: for each file, the first answer that the verifier cannot use.
    """
    chosen = plan.recipe.verifier
    if isinstance(chosen, str) and ":" in chosen:
        return
    from verl_s2d.verifiers.registry import check_answer

    faults = Faults()
    for key, problems in files.values():
        for problem in problems:
            try:
                check_answer(chosen, problem.ground_truth, problem.extra_info)
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
