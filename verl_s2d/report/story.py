"""Tell a comparison in a few sentences: which row is best, by how much, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.recipe.method_rows import TEACHER_ROWS
from verl_s2d.report.by_row.gains import COLD, DIRECT


def story(data: Mapping[str, Any]) -> list[str]:
    """Write the sentences of report.json's content, about its first evaluation set; none without a trained student."""
    set_name = data["sets"][0]
    rows = {row["name"]: row for row in data["rows"] if row["sets"][set_name]}
    if not (trained := ranking(data)):
        return []
    best, other = trained[0], _opponent(data)
    told = [_best(best, len(trained), rows.get(COLD), data)]
    if other is None and COLD not in rows:
        told.append("What training gained is not known: --rows cold-student,direct-grpo adds rows to compare it with.")
    if other is not None and (difference := _difference(data, best["name"], other["name"], set_name)):
        told.append(difference)
    if other is not None:
        told.append(_cost(best, other))
    if links := data["run"]["models"].get(best["name"]):
        told.append(f"Its model is {links[0]} in the directory of the run.")
    if len(data["seeds"]) == 1:
        told.append(
            "This is one seed: how much results vary between seeds is not in any of these numbers; --seeds 0,1,2 adds "
            "seeds."
        )
    return told


def compared(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name the best row and the one to compare it with: DIRECT, or else COLD; None where there is neither."""
    trained, names = ranking(data), [row["name"] for row in data["rows"]]
    if not trained or ((other := _opponent(data)) is None and COLD not in names):
        return None
    return trained[0]["name"], other["name"] if other else COLD


def _opponent(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find direct GRPO, or the second best row where it is the best itself."""
    best, *others = ranking(data)
    if best["name"] == DIRECT:
        return next(iter(others), None)
    return next((row for row in others if row["name"] == DIRECT), None)


def ranking(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the rows of trained students, the best on the first evaluation set first."""
    set_name, left_out = data["sets"][0], {COLD, *TEACHER_ROWS}
    rows = [row for row in data["rows"] if row["sets"][set_name] and row["name"] not in left_out]
    return sorted(rows, key=lambda row: row["sets"][set_name]["avg"], reverse=True)


def _best(best: Mapping[str, Any], count: int, cold: Mapping[str, Any] | None, data: Mapping[str, Any]) -> str:
    set_name = data["sets"][0]
    accuracy = best["sets"][set_name]["avg"]
    where = f"On {set_name}{', the first evaluation set,' if len(data['sets']) > 1 else ''}"
    place = f"{best['name']} is the best of {count} trained rows" if count > 1 else f"{best['name']} is trained"
    text = f"{where} {place}: avg@{'/'.join(map(str, data['samples']))} {100 * accuracy:.1f} %"
    if cold is None:
        return f"{text}."
    gained = 100 * (accuracy - cold["sets"][set_name]["avg"])
    return f"{text}, {abs(gained):.1f} points {'above' if gained >= 0 else 'below'} {COLD}."


def _difference(data: Mapping[str, Any], best: str, other: str, set_name: str) -> str | None:
    """Compare two rows on the same problems, whichever of them was subtracted from the other."""
    for entry in data["differences"]:
        if entry["set"] == set_name and {entry["row"], entry["minus"]} == {best, other}:
            sign = 1 if entry["row"] == best else -1
            text = f"Against {other} that is {100 * sign * entry['mean']:+.1f} points"
            if entry["interval"] is None:
                return f"{text}, without an interval: that takes three seeds."
            low, high = sorted(100 * sign * value for value in entry["interval"])
            none = ", which contains 0: no difference is shown" if low <= 0 <= high else ""
            return f"{text}, 95 % interval {low:+.1f} to {high:+.1f} over {entry['interval_over']}{none}."
    return None


def _cost(best: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    calls = _ratio(best["ledger"]["verifier_calls"], other["ledger"]["verifier_calls"], "verifier calls", ",.0f")
    unit, scale = ("GPU-hours", 1) if best["gpu_hours"] and other["gpu_hours"] else ("minutes", 60)
    key = "gpu_hours" if unit == "GPU-hours" else "hours"
    hours = _ratio(scale * best[key], scale * other[key], unit, ",.1f")
    labels = f"{best['ledger']['labels_read']:,.0f} labels against {other['ledger']['labels_read']:,.0f}"
    return f"It took {calls} and {hours} of {other['name']}, and read {labels}."


def _ratio(amount: float, other: float, unit: str, form: str) -> str:
    numbers = f"({amount:{form}} against {other:{form}})"
    return f"{amount / other:.1f} times the {unit} {numbers}" if other else f"more {unit} {numbers}"
