"""Keep the ledger of a stage: labels and unlabelled prompts read, verifier calls, tokens, updates, seconds.

A ledger is a plain JSON dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Ledger = dict[str, Any]


def empty_ledger(seconds: float = 0.0) -> Ledger:
    """Return a ledger with only the time filled in."""
    return {
        "labels_read": [],
        "prompts_read": [],
        "overlong_prompts": 0,
        "verifier_calls": 0,
        "unsettled_calls": 0,
        "unscored_calls": 0,
        "judge_calls": 0,
        "judge_tokens": 0,
        "sampled_tokens": 0,
        "teacher_scored_tokens": 0,
        "updates": 0,
        "seconds": round(seconds, 3),
    }


def add_ledgers(ledgers: Iterable[Mapping[str, Any]]) -> Ledger:
    """Add ledgers: the union of ids, the sum of every other item."""
    total, ids = empty_ledger(), {"labels_read": set(), "prompts_read": set()}
    for ledger in ledgers:
        for key in total:
            # Ledgers of earlier versions have fewer items.
            if key in ids:
                ids[key].update(ledger.get(key, ()))
            else:
                total[key] += ledger.get(key, 0)
    total |= {key: sorted(read) for key, read in ids.items()}
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
