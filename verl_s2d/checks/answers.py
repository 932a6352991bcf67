"""Check the verifier against the answers: it can use every answer, and it does not raise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.errors import UserError
from verl_s2d.workflow.identity import file_external
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.subprocess_query import Probe

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem

_told: dict[tuple[str, ...], str | None] = {}
"""Results of dry runs in this process by verifier and problem, because a plan is checked twice."""


def check_answers(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]) -> None:
    """Check every answer with a built-in verifier, or score one problem of every file with the recipe's own.

    Args:
        files: file -> (its name in messages, its problems).

    Raises:
        UserError: the verifier cannot use an answer, raises, or returns no score.
    """
    chosen = plan.recipe.verifier
    if isinstance(chosen, str) and ":" in chosen:
        for key, problems in files.values():
            _try(plan, chosen, key, problems[0])
        return
    from verl_s2d.verifiers.registry import check_answer

    for key, problems in files.values():
        for problem in problems:
            try:
                check_answer(chosen, problem.ground_truth, problem.extra_info)
            except UserError as error:
                raise UserError(
                    f"{error.problem.rstrip('.')} (problem {problem.id}).",
                    key=f"{key}: {error.key}",
                    value=error.value,
                    remedy=error.remedy,
                ) from None


def _try(plan: Plan, verifier: str, key: str, problem: Problem) -> None:
    """Run the verifier in a subprocess, because the recipe's file may import anything and may hang."""
    file, _, function = verifier.rpartition(":")
    path = plan.recipe.directory / file
    known = (file_external(path, "verifier", verifier).identity, str(path), function, key, problem.id, problem.text)
    if known not in _told:
        question = {
            "verifier": f"{path}:{function}",
            "problem": {
                "data_source": problem.data_source,
                "ground_truth": problem.ground_truth,
                "extra_info": problem.extra_info,
            },
        }
        with Probe(["-m", "verl_s2d.verifiers.dry_run"], None, question, what="a trial of the verifier") as probe:
            answer, failure = probe.answer()
        _told[known] = failure if answer is None else answer["problem"]
    if _told[known] is not None:
        raise UserError(
            f"{_told[known]} (problem {problem.id} of {key})",
            key="verifier",
            value=verifier,
            remedy="Return a number, or a mapping with `score`, for any response; 0 when it has no answer.",
        )
