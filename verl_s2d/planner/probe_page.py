"""Write a probe's page as text, from the data of probe.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.planner.probe_verdicts import NOT, STANDS, covered_share, percent, points
from verl_s2d.recipe.planner_settings import THRESHOLD_SOURCES, Thresholds
from verl_s2d.report.table_text import MISSING, Column, Table, as_text, words


def probe_text(result: Mapping[str, Any]) -> str:
    """Describe a probe: a line per model, a line per pair, what is out of range, and what it cost."""
    models, pairs = result["models"], result["pairs"]
    head = f"{result['recipe']}: {result['problems']} labelled problems, {result['samples']} samples each, seed "
    parts: list[str | Table] = [head + str(result["seed"]), "", "How productive is a label?", _models(result)]
    parts += ["", "Does the bridge stand?", _pairs(result), ""]
    out = [verdict for verdict in result["verdicts"] if not verdict["ok"]]
    parts.append("Out of range:" if out else "Everything is within the thresholds (planner.thresholds).")
    for verdict in out:
        parts.append(
            f"- {verdict['subject']}, {verdict['what']}: {verdict['text']} ({_threshold(result, verdict['key'])})"
        )
    parts += ["", *_answers(models, pairs), _cost(result["ledger"])]
    return as_text(*parts)


def _models(result: Mapping[str, Any]) -> Table:
    n = result["samples"]
    columns = [*words("model"), *map(Column, ("pass@1", f"pass@{n}", "mixed", "never", "always"))]
    columns += map(Column, ("calls a useful group", "parsed", "tokens", "cut off"))
    lines = [
        [
            role,
            _share(found["pass_at_1"]),
            _share(found["pass_at_n"]),
            percent(found["mixed"]["mean"]),
            percent(found["never"]),
            percent(found["always"]),
            MISSING if (calls := found["calls_per_useful_group"]) is None else f"{calls:.0f}",
            MISSING if (rate := found["parse_rate"]) is None else percent(rate),
            f"{found['mean_tokens']:.0f}",
            percent(found["truncated"]),
        ]
        for role, found in result["models"].items()
    ]
    return Table("", columns, lines)


def _pairs(result: Mapping[str, Any]) -> Table:
    numbers = ("gap", "right above wrong", "forward KL", "reverse KL", "travel", "room")
    sides = (f"overlap@{result['top_k']}", "T's mass on S's", "S's mass on T's", "on both")
    columns = [*words("teacher"), *map(Column, (*numbers, *sides)), *words("bridge")]
    lines = []
    for role, found in result["pairs"].items():
        student, teacher = found["student_rollouts"], found["teacher_rollouts"]
        way, separated = teacher["travel"], student["separation"]
        lines.append(
            [
                role,
                f"{points(found['gap']['mean'])}{_error(found['gap']['stderr'])}",
                _share(separated) if separated["mean"] is not None else MISSING,
                *(f"{value['mean']:.3f}" for value in (teacher["forward_kl"], student["reverse_kl"])),
                f"{way:.2f}",
                percent(covered_share(way, result["thresholds"]["travel"])),
                *(
                    percent(student[name]["mean"])
                    for name in (
                        *("overlap_ratio", "teacher_mass_on_student_top"),
                        *("student_mass_on_teacher_top", "student_mass_on_both"),
                    )
                ),
                found["bridge"],
            ]
        )
    return Table("", columns, lines)


def _answers(models: Mapping[str, Any], pairs: Mapping[str, Any]) -> list[str]:
    """Say where a label goes farthest and which bridges stand."""
    best = max(models, key=lambda role: models[role]["mixed"]["mean"])
    lines = [f"A label most often gives GRPO a gradient on: {best} ({percent(models[best]['mixed']['mean'])})."]
    for bridge in dict.fromkeys(found["bridge"] for found in pairs.values()):
        roles = [role for role, found in pairs.items() if found["bridge"] == bridge]
        how = bridge if bridge in (STANDS, NOT) else f"stands {bridge}"
        lines.append(f"The bridge {how}: {', '.join(roles)}.")
    return lines


def _threshold(result: Mapping[str, Any], key: str) -> str:
    """Write a threshold as its key, and the source of its default where it has that value."""
    bound = result["thresholds"][key]
    chosen = bound != getattr(Thresholds(), key)
    return f"{key}: {bound:g}, {'chosen here' if chosen else THRESHOLD_SOURCES[key]}"


def _cost(ledger: Mapping[str, Any]) -> str:
    return (
        f"Cost: {ledger['labels']:,} labels, {ledger['verifier_calls']:,} verifier calls, "
        f"{ledger['sampled_tokens']:,} sampled tokens, {ledger['teacher_scored_tokens']:,} tokens scored by teachers. "
        "A row that trains on the same problems reads the same labels."
    )


def _share(value: Mapping[str, Any]) -> str:
    """Format a share with its standard error, in percent."""
    return MISSING if value["mean"] is None else f"{100 * value['mean']:.1f}{_error(value['stderr'])}"


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" +- {100 * stderr:.1f}"
