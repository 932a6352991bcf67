"""Score responses with verl's own scorers, which verl chooses by data_source: GSM8K, MATH, DAPO, geometry, search."""

from __future__ import annotations

from typing import Any

from verl_s2d.errors import UserError

EVALUATING_SOURCES = ("codecontests", "apps", "codeforces", "taco", "numina")
"""Beginnings of data sources whose scorers run the response as Python, by exec or eval, in the scoring process."""


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Score a response: a number, or a mapping with `score`.

    Raises:
        UserError: verl has no scorer for the data source, or one that runs the response.
    """
    if data_source.startswith(EVALUATING_SOURCES):
        raise _unusable(data_source, "verl's scorer of this data source runs the response as Python code.")
    # Imports torch.
    from verl.utils.reward_score import default_compute_score

    try:
        return default_compute_score(data_source, solution_str, ground_truth, extra_info, **options)
    except NotImplementedError:
        raise _unusable(data_source, "verl has no scorer for this data source.") from None


def _unusable(data_source: str, problem: str) -> UserError:
    return UserError(
        problem,
        key="data_source",
        value=data_source,
        remedy="Choose verifier: math, code, or one of your own (file.py:function).",
    )
