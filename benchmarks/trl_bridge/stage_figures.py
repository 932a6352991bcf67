"""Figures of a stage, alike for both sides, and the table that has them side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from verl_s2d.stages.evaluate.statistics import Estimate, mean_and_stderr, paired_bootstrap

TITLES = {
    "teacher_rl": "1: GRPO, teacher",
    "rollouts": "teacher's rollouts",
    "warmup": "2a: forward KL",
    "opd": "2b: on-policy, reverse KL",
    "student_rl": "3: GRPO, student",
}
EVALUATED = {"teacher": "teacher, given", "student": "student, given", **TITLES}
COMMAND = "command"
"""Stage of a side's whole command: start, evaluations and all."""
_HEAD = ("stage", "minutes", "processor minutes", "updates", "tokens", "tokens/s")


@dataclass(frozen=True)
class StageFigures:
    """A stage.

    Attributes:
        spans: epoch seconds in which it ran, from beginning to end, one for each attempt.
        tokens: response tokens that were sampled, or in 2a trained on.
        shares: problem of the evaluation set -> share of right samples; empty for other stages.
        processor: processor seconds; None: not measured.
    """

    stage: str
    spans: tuple[tuple[float, float], ...]
    updates: int
    tokens: int
    shares: Mapping[str, float] = field(default_factory=dict)
    processor: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(ended - began for began, ended in self.spans)

    @property
    def accuracy(self) -> Estimate | None:
        """avg@k and its standard error over problems."""
        return mean_and_stderr(list(self.shares.values())) if self.shares else None


def side_by_side(sides: Mapping[str, Sequence[StageFigures]]) -> str:
    """Write two tables in markdown: costs of the stages, each cell with both sides in their order, and accuracies.

    The difference is the second side's accuracy minus the first's, with its 95 % interval over the same problems.
    """
    names = " / ".join(sides)
    by_stage = [{one.stage: one for one in side} for side in sides.values()]
    lines = [f"{names}", "", *_head(*_HEAD)]
    for stage, title in TITLES.items():
        lines.append(_line(title, *_costs([[side[stage]] for side in by_stage])))
    lines.append(_line("all five", *_costs([[side[stage] for stage in TITLES] for side in by_stage])))
    commands = [[side[COMMAND]] if COMMAND in side else [] for side in by_stage]
    lines.append(_line("whole command", *list(_costs(commands))[:2], "", "", ""))
    lines += ["", *_head("model after", *(f"avg@k, {name}" for name in sides), " - ".join(reversed(list(sides))))]
    for stage, title in EVALUATED.items():
        found = [side.get(f"evaluate {stage}") for side in by_stage]
        if any(found):
            lines.append(_line(title, *map(_accuracy, found), _difference(*found)))
    return "\n".join(lines)


def _costs(groups: Sequence[Sequence[StageFigures]]) -> Iterator[str]:
    yield _cell(f"{_seconds(group) / 60:.2f}" if group else "-" for group in groups)
    yield _cell(map(_processor, groups))
    yield _cell(f"{sum(one.updates for one in group)}" for group in groups)
    tokens = [sum(one.tokens for one in group) for group in groups]
    yield _cell(f"{count:,}" for count in tokens)
    yield _cell(f"{count / _seconds(group):.0f}" if group else "-" for count, group in zip(tokens, groups, strict=True))


def _cell(values: Iterable[str]) -> str:
    return " / ".join(values)


def _seconds(group: Sequence[StageFigures]) -> float:
    return sum(one.seconds for one in group)


def _processor(group: Sequence[StageFigures]) -> str:
    seconds = [one.processor for one in group if one.processor is not None]
    return f"{sum(seconds) / 60:.2f}" if group and len(seconds) == len(group) else "-"


def _accuracy(figures: StageFigures | None) -> str:
    estimate = figures.accuracy if figures else None
    return "-" if estimate is None else f"{100 * estimate.mean:.1f} +- {100 * estimate.stderr:.1f}"


def _difference(one: StageFigures | None, other: StageFigures | None) -> str:
    if one is None or other is None or one.shares.keys() != other.shares.keys():
        return "-"
    interval = paired_bootstrap(list(one.shares.values()), [other.shares[problem] for problem in one.shares])
    return f"{100 * interval.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
