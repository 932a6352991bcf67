"""Judge a probe's numbers by the recipe's thresholds: what is out of range, and what that costs.

The conditions of the bridge are those of arXiv 2605.12483: C1, the teacher is reward-shaped (stage 1 enforces it); C2,
KL(pi_T || pi_S) is small at the current student (stage 2a enforces it), or a few outlier tokens dominate the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from verl_s2d.planner.guards import Gap
from verl_s2d.recipe.planner_settings import Thresholds

STANDS, NOT = "stands", "does not stand"
"""The bridge from a teacher as it is; between them, `after 1`, `after 2a` and `after 1, 2a` name the stages that it
rests on."""


@dataclass(frozen=True)
class ProbeVerdict:
    """One judgement.

    Attributes:
        subject: role of the model, or of the pair's teacher.
        what: labels, answers, C1 or C2.
        ok: within the threshold.
        key: the threshold's name under planner.thresholds.
    """

    subject: str
    what: str
    ok: bool
    key: str
    text: str

    def data(self) -> dict[str, Any]:
        """Return its entry of probe.json."""
        return asdict(self)


def judge_model(role: str, found: Mapping[str, Any], bounds: Thresholds) -> list[ProbeVerdict]:
    """Judge what labels are worth on a model, and whether its answers can be read.

    Args:
        found: entry of probe.json, as `label_use` returns it, with parse_rate.
    """
    mixed, calls = found["mixed"]["mean"], found["calls_per_useful_group"]
    useful = mixed >= bounds.mixed
    cost = f"a useful group costs {calls:.0f} verifier calls" if calls else "no group is useful"
    text = f"{percent(mixed)} of groups of {found['samples']} have right and wrong samples, so {cost}"
    if not useful:
        hard = found["never"] >= found["always"]
        advice = "easier problems, more samples or a stronger model" if hard else "harder problems"
        why = f"{percent(found['never'])} of problems are never solved, {percent(found['always'])} always"
        text = f"only {text}: {why}; {advice} would make labels productive"
    verdicts = [ProbeVerdict(role, "labels", useful, "mixed", text)]
    rate = found.get("parse_rate")
    if rate is not None and rate < bounds.parse_rate:
        lost = f"{percent(1 - rate)} of finished responses count as wrong whatever they know"
        text = f"an answer is found in {percent(rate)} of finished responses: {lost}"
        verdicts.append(ProbeVerdict(role, "answers", False, "parse_rate", text))
    return verdicts


def judge_pair(
    role: str, found: Mapping[str, Any], productive: bool, bounds: Thresholds
) -> tuple[str, list[ProbeVerdict]]:
    """Judge the bridge from a teacher to the student.

    Args:
        found: entry of probe.json: gap and the sides of compare.json.
        productive: whether labels are productive on the teacher, so that stage 1 can shape it.

    Returns:
        STANDS, NOT or the stages that it needs, and the verdicts. It does not stand if the teacher is weaker, is not
        better and has no productive labels to become so, or shares too few likely tokens with the student.
    """
    shaped, weaker = _reward_shaped(role, found, productive, bounds)
    overlap, mass, travel = _near(role, found, shaped.ok, bounds)
    hopeless = weaker or not (shaped.ok or productive) or not overlap.ok
    needed = [stage for stage, ok in (("1", shaped.ok), ("2a", mass.ok and travel.ok)) if not ok]
    bridge = NOT if hopeless else f"after {', '.join(needed)}" if needed else STANDS
    return bridge, [shaped, overlap, mass, travel]


def _reward_shaped(
    role: str, found: Mapping[str, Any], productive: bool, bounds: Thresholds
) -> tuple[ProbeVerdict, bool]:
    """Judge C1; also report whether the teacher is weaker than the student by more than chance."""
    gap = Gap(role, found["gap"]["mean"], found["gap"]["stderr"] or 0.0, bounds.gap_se)
    text = gap.warning or f"{gap.text}, more than {gap.least:g} s.e."
    if gap.warning and not gap.weaker:
        text += "; stage 1 may change that" if productive else ", and labels are too rarely productive to change that"
    separated = found["student_rollouts"]["separation"]
    if separated["mean"] is not None:
        ranked = percent(separated["mean"])
        text += f"; its implicit reward ranks a right rollout above a wrong one in {ranked} of pairs"
    return ProbeVerdict(role, "C1", gap.warning is None, "gap_se", text), gap.weaker


def _near(
    role: str, found: Mapping[str, Any], better: bool, bounds: Thresholds
) -> tuple[ProbeVerdict, ProbeVerdict, ProbeVerdict]:
    """Judge C2 by overlap, common mass and travel; `better` than the student, a teacher has points to transfer."""
    student, teacher, k = found["student_rollouts"], found["teacher_rollouts"], found["top_k"]
    shared, mass = student["overlap_ratio"]["mean"], student["student_mass_on_both"]["mean"]
    largest = f"the largest 1 % of tokens make up {percent(student['largest_1_percent'])} of the reverse KL"
    text = f"overlap@{k} on student rollouts {percent(shared)}"
    if shared < bounds.overlap:
        text += f": 2b would follow tokens that the student hardly considers ({largest}); 2a first, then probe again"
    overlap = ProbeVerdict(role, "C2", shared >= bounds.overlap, "overlap", text)

    text = f"{percent(mass)} of the student's probability is on tokens likely to both"
    if mass < bounds.mass:
        text += f": the rest of 2b's gradient is on tokens unlikely to one of them ({largest}); 2a brings them nearer"
    common = ProbeVerdict(role, "C2", mass >= bounds.mass, "mass", text)

    way, covered = teacher["travel"], covered_share(teacher["travel"], bounds.travel)
    text = f"the teacher is at travel {way:.2f}, and {bounds.travel:g} transfers"
    if covered < 1:
        text += f": {percent(covered)} of the way"
        if better:
            text += f", about {points(found['gap']['mean'] * covered)} points if accuracy is linear in travel"
    return overlap, common, ProbeVerdict(role, "C2", covered >= 1, "travel", text)


def covered_share(way: float, limit: float) -> float:
    """Return the share of the way to the teacher that distillation transfers: the travel room."""
    return 1.0 if way <= limit else limit / way


def percent(share: float) -> str:
    """Format a share, as 12 %; a small one with a decimal."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def points(difference: float) -> str:
    """Format a difference of shares in points, with its sign."""
    return f"{100 * difference:+.1f}"
