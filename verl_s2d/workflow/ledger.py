"""Keep the ledger of a stage: labels read, verifier calls (of these without a verdict), tokens, updates, seconds.

A ledger is a plain JSON dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Ledger = dict[str, Any]
_SUMMED = (
    "overlong_prompts",
    "verifier_calls",
    "unsettled_calls",
    "sampled_tokens",
    "teacher_scored_tokens",
    "updates",
    "seconds",
)


def empty_ledger(seconds: float = 0.0) -> Ledger:
    """Return a ledger with only the time filled in."""
    return {
        "labels_read": [],
        "overlong_prompts": 0,
        "verifier_calls": 0,
        "unsettled_calls": 0,
        "sampled_tokens": 0,
        "teacher_scored_tokens": 0,
        "updates": 0,
        "seconds": round(seconds, 3),
    }


def add_ledgers(ledgers: Iterable[Mapping[str, Any]]) -> Ledger:
    """Add ledgers: the union of the labels, the sum of every other item."""
    total, labels = empty_ledger(), set()
    for ledger in ledgers:
        labels.update(ledger["labels_read"])
        for key in _SUMMED:
            # Ledgers of earlier versions have fewer items.
            total[key] += ledger.get(key, 0)
    total["labels_read"] = sorted(labels)
    total["seconds"] = round(total["seconds"], 3)
    return total


def amount(ledger: Mapping[str, Any], item: str) -> int:
    """Return the amount of an item in a ledger; for `labels` their number."""
    return len(ledger["labels_read"]) if item == "labels" else ledger[item]


def sum_over_steps(
    metrics: Mapping[int, Mapping[str, Any]], steps: int, value: Callable[[Mapping[str, Any]], float | None]
) -> int:
    """Sum a per-step value over `steps` steps.

    verl saves a checkpoint before it logs the step, so a kill in between loses the line of a finished step. Steps
    without a line count with the mean of the others.
    """
    found = [v for step, data in metrics.items() if 1 <= step <= steps and (v := value(data)) is not None]
    if not found:
        return 0
    return round(sum(found) * steps / len(found))
