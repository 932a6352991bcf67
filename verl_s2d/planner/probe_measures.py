"""Measure from verdicts alone how productive a label is on a model, and how far one model is ahead of another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from verl_s2d.recipe.pass_at_k import pass_at_k
from verl_s2d.stages.evaluate.statistics import mean_and_stderr

Verdicts = Sequence[Mapping[str, Any]]
"""`per_problem` of a result.json: id, correct, samples, and unsettled where some samples have no verdict."""


def label_use(problems: Verdicts) -> dict[str, Any]:
    """Compute what GRPO could make of these problems' labels, with groups of as many samples.

    A sample without a verdict is neither right nor wrong, and a problem without any verdict is left out.

    Returns:
        problems, samples; pass_at_1 and pass_at_n, mean and stderr over problems (pass_at_n over those with all
        verdicts); mixed: share of problems with right and wrong samples, where the group-relative advantage is not 0;
        never, always: shares of problems without right and without wrong samples; calls_per_useful_group: verifier
        calls for one group with a gradient, samples / mixed, null without any.

    Raises:
        ValueError: no problem has a verdict.
    """
    settled = [(p["correct"], p["samples"] - p.get("unsettled", 0)) for p in problems]
    settled = [(correct, samples) for correct, samples in settled if samples]
    if not settled:
        raise ValueError("no sample has a verdict")
    group = max(p["samples"] for p in problems)
    whole = [pass_at_k(correct, samples, group) for correct, samples in settled if samples == group]
    mixed = [float(0 < correct < samples) for correct, samples in settled]
    share = sum(mixed) / len(mixed)
    return {
        "problems": len(settled),
        "samples": group,
        "pass_at_1": estimate([correct / samples for correct, samples in settled]),
        "pass_at_n": estimate(whole) if whole else {"mean": None, "stderr": None},
        "mixed": estimate(mixed),
        "never": sum(correct == 0 for correct, _ in settled) / len(settled),
        "always": sum(correct == samples for correct, samples in settled) / len(settled),
        "calls_per_useful_group": group / share if share else None,
    }


def gap(student: Verdicts, teacher: Verdicts) -> dict[str, Any]:
    """Compute pass@1 of the teacher minus that of the student, paired by problem: mean and stderr over problems."""
    rates = [
        {p["id"]: p["correct"] / n for p in of if (n := p["samples"] - p.get("unsettled", 0))}
        for of in (student, teacher)
    ]
    shared = sorted(rates[0].keys() & rates[1].keys())
    return estimate([rates[1][problem] - rates[0][problem] for problem in shared])


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and stderr as JSON has them; a single value has no stderr."""
    mean, stderr = mean_and_stderr(values)
    return {"mean": mean, "stderr": stderr if math.isfinite(stderr) else None}
