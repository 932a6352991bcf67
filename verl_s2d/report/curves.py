"""What the stages logged over their steps, as the report shows it: which metric goes into which panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Metrics = Mapping[int, Mapping[str, Any]]
"""Step -> what was logged at it."""

MOST_POINTS = 200
"""Of a curve that is kept; see `thin`."""

TRUNCATED = "truncated"


@dataclass(frozen=True)
class Panel:
    """One plot over steps.

    Attributes:
        part: heading under which it stands.
        unit: of the y axis.
        kinds: kinds of stages that have it.
        metrics: logged name -> what tells it from the others of the same stage in this panel.
        from_zero: whether the y axis contains zero.
    """

    name: str
    part: str
    title: str
    unit: str
    kinds: tuple[str, ...]
    metrics: Mapping[str, str]
    from_zero: bool = True


_RL, _DISTILLATION, _REST = (
    "Reinforcement learning (stages 1 and 3)",
    "Distillation (stages 2a and 2b)",
    "Responses and updates in training",
)
_GRPO, _WARMUP, _OPD = ("grpo",), ("warmup",), ("opd",)

PANELS = (
    # No verifier scores the rollouts of on-policy distillation; verl logs zeros for them.
    Panel("score", _RL, "Score", "mean score of the verifier", _GRPO, {"critic/score/mean": ""}),
    Panel("policy-kl", _RL, "KL to the reference policy", "nats per token", _GRPO, {"actor/kl_loss": ""}),
    Panel("rl-loss", _RL, "Loss", "policy loss", _GRPO, {"actor/loss": ""}),
    Panel("rl-entropy", _RL, "Entropy of the policy", "nats per token", _GRPO, {"actor/entropy": ""}),
    Panel(
        "forward-kl", _DISTILLATION, "2a: KL(teacher || student)", "nats per token", _WARMUP, {"train/forward_kl": ""}
    ),
    Panel("reverse-kl", _DISTILLATION, "2b: KL(student || teacher)", "nats per token", _OPD, {"s2d/reverse_kl": ""}),
    Panel("jsd", _DISTILLATION, "2b: generalised JSD", "nats per token", _OPD, {"s2d/jsd": ""}),
    Panel(
        "agreement",
        _DISTILLATION,
        "Agreement with the teacher",
        "share",
        (*_WARMUP, *_OPD),
        {
            "train/top1_agreement": "same likeliest token",
            "s2d/top1_agreement": "same likeliest token",
            "s2d/overlap_ratio": "overlap of the top k",
        },
        from_zero=False,
    ),
    Panel(
        "mass",
        _DISTILLATION,
        "Mass on the other's top k",
        "probability",
        _OPD,
        {"s2d/teacher_mass_on_student_top": "the teacher's", "s2d/student_mass_on_teacher_top": "the student's"},
        from_zero=False,
    ),
    Panel(
        "distillation-loss",
        _DISTILLATION,
        "Loss",
        "loss",
        (*_WARMUP, *_OPD),
        {"train/loss": "", "actor/loss": ""},
    ),
    Panel(
        "distillation-entropy",
        _DISTILLATION,
        "Entropies",
        "nats per token",
        (*_WARMUP, *_OPD),
        {
            "train/student_entropy": "student",
            "s2d/student_entropy": "student",
            "train/teacher_entropy": "teacher",
            "s2d/teacher_entropy": "teacher",
        },
    ),
    Panel("length", _REST, "Response length", "tokens", (*_GRPO, *_OPD), {"response_length/mean": ""}),
    Panel(TRUNCATED, _REST, "Truncated responses", "share", (*_GRPO, *_OPD), {TRUNCATED: ""}),
    Panel(
        "grad-norm",
        _REST,
        "Gradient norm",
        "norm before clipping",
        (*_GRPO, *_WARMUP, *_OPD),
        {"actor/grad_norm": "", "train/grad_norm": ""},
    ),
)


def curves_of(kind: str, response_tokens: int | None, metrics: Metrics) -> dict[str, dict[str, dict[str, list]]]:
    """Panel -> series -> {"steps": [...], "values": [...]} of one stage, without what it did not log.

    Args:
        response_tokens: the stage's limit to a response; without it nothing can be said of truncation.
    """
    curves: dict[str, dict[str, dict[str, list]]] = {}
    for panel in PANELS:
        if kind not in panel.kinds:
            continue
        for key, series in panel.metrics.items():
            points = [
                (step, y) for step, data in metrics.items() if (y := _value(key, data, response_tokens)) is not None
            ]
            finite = [(step, float(f"{y:.5g}")) for step, y in points if math.isfinite(y)]
            if finite:
                steps, values = thin([s for s, _ in finite], [y for _, y in finite])
                curves.setdefault(panel.name, {})[series] = {"steps": steps, "values": values}
    return curves


def not_finite(kind: str, metrics: Metrics) -> dict[str, list[int]]:
    """Logged name -> steps at which it was NaN or infinite, of the metrics that the panels of this kind show."""
    found = {}
    for key in {key for panel in PANELS if kind in panel.kinds for key in panel.metrics}:
        steps = [step for step, data in metrics.items() if key in data and not _is_finite(data[key])]
        if steps:
            found[key] = steps
    return dict(sorted(found.items()))


def thin(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """At most so many points: of every stretch its lowest and its highest, so that no spike is lost; and the ends."""
    if len(steps) <= most:
        return list(steps), list(values)
    stretches = (most - 2) // 2
    kept = {0, len(steps) - 1}
    for number in range(stretches):
        stretch = range(number * len(steps) // stretches, (number + 1) * len(steps) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def _value(key: str, data: Mapping[str, Any], response_tokens: int | None) -> float | None:
    if key != TRUNCATED:
        return _number(data.get(key))
    # verl's clip ratio is the share of a batch that is as long as its longest, which may be short of the limit.
    share, longest = _number(data.get("response_length/clip_ratio")), _number(data.get("response_length/max"))
    if share is None or longest is None or response_tokens is None:
        return None
    return share if longest >= response_tokens else 0.0


def _is_finite(value: Any) -> bool:
    # verl's logger writes null for what JSON has no number for.
    return math.isfinite(value) if isinstance(value, int | float) else value is not None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
