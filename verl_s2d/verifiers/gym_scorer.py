"""Score a reasoning-gym answer with its data set's own scorer: in a sandbox, as some scorers evaluate the answer."""

from __future__ import annotations

from typing import Any

from reasoning_gym.factory import get_score_answer_fn


def score_in_box(dataset: str, answer: str, entry: dict[str, Any]) -> float:
    """Return the scorer's score of an answer to an entry."""
    return float(get_score_answer_fn(dataset)(answer, entry))
