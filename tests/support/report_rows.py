"""Rows to report on, whose numbers can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from verl_s2d.report.curves import curves_of
from verl_s2d.report.document import markdown
from verl_s2d.report.write import Facts, Report, RowResult, build_report
from verl_s2d.stages.evaluate.sample_and_score import summarise


def result(*correct: int, samples: int = 4, name: str = "eval", level: str | None = None) -> dict[str, Any]:
    """result.json of a set whose problems have so many right samples each."""
    rows = [
        {
            "set": name,
            "id": f"p{i}",
            "correct": s < right,
            "response_ids": [1] * (2 + s),
            "finish_reason": "length" if s == 0 else "stop",
            "level": level,
        }
        for i, right in enumerate(correct)
        for s in range(samples)
    ]
    return summarise(rows, samples)


def ledger(labels: Sequence[str] = (), **numbers: float) -> dict[str, Any]:
    zero = {"verifier_calls": 0, "sampled_tokens": 0, "teacher_scored_tokens": 0, "updates": 0, "seconds": 0.0}
    return {"labels_read": list(labels), **zero, **numbers}


def stage(
    name: str, digest: str, kind: str = "grpo", limit: int | None = 8, **metrics: Sequence[float]
) -> dict[str, Any]:
    """A stage as the report is given it; metrics are values a step, from step 1, `/` written as __."""
    steps = {
        step: {key.replace("__", "/"): values[step - 1] for key, values in metrics.items()}
        for step in range(1, 1 + max(map(len, metrics.values()), default=0))
    }
    return {
        **{"kind": kind, "name": name, "dir": "/nowhere", "digest": digest, "seconds": 60.0, "updates": 2},
        **{"curves": curves_of(kind, limit, steps), "alarms": []},
    }


def markdown_of(report: Report) -> str:
    return markdown(report.data, report.sections, plots="plots")


def whole_report(
    word: str = "",
    *,
    sets: Sequence[str] = ("math", "aime"),
    rows: Sequence[str] = ("cold-student", "direct-grpo", "bridge", "half"),
    seeds: Sequence[int] = (0,),
    steps: int = 40,
    alarms: bool = True,
    published: bool = True,
) -> Report:
    """A report with every section; `word` is part of every text that a recipe, its data or its models decide."""
    return build_report(
        [_row(word, name, place, seed, sets, steps, alarms) for seed in seeds for place, name in enumerate(rows)],
        Facts(
            f"recipe{word}",
            about={"student": f"model{word}", "teacher": f"model{word}"},
            command=f"verl-s2d run recipe{word}.yaml",
            published={f"{rows[-1]}{word}": {f"{name}{word}": 61.5 for name in sets}} if published else {},
        ),
    )


def _row(word, name, place, seed, sets, steps, alarms) -> RowResult:
    results: dict[str, Any] = {"sets": {}, "per_problem": {}, "sampling": {"samples": 4, "temperature": 1.0}}
    for set_name in sets:
        right = [min(4, (i * 7 + seed) % 4 + (i % 4 < place)) for i in range(20)]
        one = result(*right, name=f"{set_name}{word}", level=f"5{word}")
        results["sets"] |= one["sets"]
        results["per_problem"] |= one["per_problem"]
    wave = [math.sin(step / 5 + place + seed) for step in range(steps)]
    rise = [0.2 + 0.1 * place + 0.5 * step / steps + 0.05 * wave[step] for step in range(steps)]
    fall = [0.6 - 0.5 * step / steps + 0.05 * abs(wave[step]) for step in range(steps)]
    common = {"response_length__mean": rise, "response_length__max": [8] * steps, "response_length__clip_ratio": fall}
    health = {"s2d__top1_agreement": rise, "s2d__overlap_ratio": rise, "s2d__teacher_mass_on_student_top": rise}
    stages = [
        stage(
            *(f"student-rl-{name}{word}", f"{seed}rl{name}", "grpo"),
            **{"critic__score__mean": rise, "actor__loss": wave, "actor__kl_loss": rise, "actor__entropy": fall},
            **{"actor__grad_norm": rise, **common},
        ),
        stage(
            *(f"warmup-{name}{word}", f"{seed}warm{name}", "warmup", None),
            **{"train__forward_kl": fall, "train__loss": fall, "train__top1_agreement": rise},
        ),
        stage(
            *(f"opd-{name}{word}", f"{seed}opd{name}", "opd"),
            **{"s2d__reverse_kl": fall, "actor__loss": fall, "s2d__student_mass_on_teacher_top": fall, **common},
            **{key: values[:steps] for key, values in health.items()},
        ),
    ]
    # RL after 2b after 2a, from a teacher that was not trained.
    spent = {"labels": 2, "verifier_calls": 10_240, "sampled_tokens": 40_282, "teacher_scored_tokens": 60_993}
    asked = {"teacher": f"org/teacher{word}"}
    flow = (
        ("RL(all)", stages[2]["digest"], {}),
        ("2a", f"org/student{word}", asked),
        ("2b", stages[1]["digest"], asked),
    )
    stages = [
        s
        | {
            "symbol": symbol,
            "model": model,
            "teachers": {"teacher": f"org/teacher{word}"} if asks else {},
            "spent": spent,
        }
        for s, (symbol, model, asks) in zip(stages, flow, strict=True)
    ]
    evaluation = stage(f"evaluate-{name}{word}", f"{seed}eval{name}", "evaluate") | {"model": stages[0]["digest"]}
    if alarms and name == "half":
        alarm = {"step": 2, "text": "not finite: s2d/skipped_updates at step 2"}
        stages.append(stage(f"opd-more{word}", f"{seed}more", "opd", s2d__reverse_kl=fall[:3]) | {"alarms": [alarm]})
    versions = {"verl": f"0.9.1{word}"}
    stages = [
        {**s, "versions": versions, "began": 1e9 + 60 * i, "ended": 1e9 + 60 * i + 59}
        for i, s in enumerate([*stages, evaluation])
    ]
    spent = ledger(["a", "b"], verifier_calls=10_240, sampled_tokens=123_456, updates=40, seconds=600.0)
    return RowResult(f"{name}{word}", seed, results, spent, stages)


HOSTILE = (
    "</style></title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{7*7}} $x_"
)
