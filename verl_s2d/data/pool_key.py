"""Name the pool of prompts without labels, and their ids."""

from __future__ import annotations

PROMPTS = "data.prompts"
"""Key of the pool in a recipe."""
POOL_ID = "prompt:"
"""Beginning of the ids of prompts without labels, so that a ledger tells them from those of labelled problems."""


def is_pool_id(problem: str) -> bool:
    """Tell whether an id is that of a prompt without a label."""
    return problem.startswith(POOL_ID)
