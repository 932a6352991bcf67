"""report.json as tables: for a terminal and in markdown."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_MATCH_LEGEND = "These rows stopped at the first step at or past what another row consumed."


def terminal(data: Mapping[str, Any]) -> str:
    """One table of the rows; one of the paired differences if there are two rows. Never narrower than the first."""
    tables = [_rich("Rows", *_rows(data))]
    header, body = _matches(data)
    if body:
        tables.append(_rich("Matched rows", header, body))
    if data["differences"]:
        tables.append(_rich("Paired differences", *_differences(data)))
    text = io.StringIO()
    colours = sys.stdout.isatty()
    console = Console(file=text, force_terminal=colours, no_color=not colours)
    console.width = max(
        console.width, *(console.measure(t, options=console.options.update(width=1000)).maximum for t in tables)
    )
    for table in tables:
        console.print(table)
    return text.getvalue().rstrip("\n")


def markdown(data: Mapping[str, Any]) -> str:
    """The same tables with what their numbers mean, the plots, and the stages of every row."""
    seeds = ", ".join(map(str, data["seeds"]))
    parts = ["# Report", "", f"Seeds: {seeds}. {_legend(data)}", "", *_markdown(*_rows(data))]
    header, body = _matches(data)
    if body:
        parts += ["", "## Matched rows", "", _MATCH_LEGEND, "", *_markdown(header, body)]
    if data["differences"]:
        parts += ["", "## Paired differences", "", f"{_difference_legend(data)}", "", *_markdown(*_differences(data))]
    for name in data["sets"]:
        header, body = _levels(data, name)
        if body:
            parts += ["", f"## {name} by level", "", "avg@k in percent.", "", *_markdown(header, body)]
    for plot in data.get("plots", ()):
        parts += ["", f"![{plot.removesuffix('.png')}]({plot})"]
    parts += ["", "## Stages", "", *_markdown(*_stages(data)), ""]
    return "\n".join(parts)


def _legend(data: Mapping[str, Any]) -> str:
    over = (
        "standard error over problems"
        if len(data["seeds"]) == 1
        else "standard error over seeds, in brackets each seed"
    )
    means = "" if len(data["seeds"]) == 1 else ", means over seeds"
    return (
        f"avg@k in percent +- {over}. Labels are problems whose answers were read. Labels, calls, tokens, updates and "
        f"minutes are those of all stages behind a row but its evaluation, work repeated after a crash included{means}."
    )


def _difference_legend(data: Mapping[str, Any]) -> str:
    if len(data["seeds"]) == 1:
        return "Percentage points, on the same problems; 95 % bootstrap interval over problems."
    return "Percentage points, within a seed; 95 % t interval over seeds (from three seeds on)."


def _rows(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    many = len(data["sets"]) > 1
    samples = "/".join(map(str, data["samples"]))
    published = [s for s in data["sets"] if any(s in row.get("published", {}) for row in data["rows"])]
    header = ["row", *(f"avg@{samples}{f' {s}' if many else ''}" for s in data["sets"])]
    header += [f"published{f' {s}' if many else ''}" for s in published]
    header += ["labels", "verifier calls", "sampled tokens", "teacher-scored tokens", "updates", "minutes"]
    body = []
    for row in data["rows"]:
        ledger = row["ledger"]
        body.append(
            [
                row["name"],
                *(_accuracy(row["sets"][s]) for s in data["sets"]),
                *(f"{row['published'][s]:.1f}" if s in row["published"] else "-" for s in published),
                *(f"{ledger[k]:,.0f}" for k in ("labels_read", "verifier_calls", "sampled_tokens")),
                *(f"{ledger[k]:,.0f}" for k in ("teacher_scored_tokens", "updates")),
                f"{ledger['seconds'] / 60:.1f}",
            ]
        )
    return header, body


def _accuracy(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "-"
    text = f"{100 * values['avg']:.1f}"
    if values["stderr"] is not None:
        text += f" +- {100 * values['stderr']:.1f}"
    if len(values["per_seed"]) > 1:
        text += " (" + ", ".join(f"{100 * v['avg']:.1f}" for v in values["per_seed"]) + ")"
    return text


def _levels(data: Mapping[str, Any], set_name: str) -> tuple[list[str], list[list[str]]]:
    """Rows down, levels across; no rows where the set has no levels."""
    of_rows = {row["name"]: (row["sets"][set_name] or {}).get("levels", {}) for row in data["rows"]}
    levels = sorted({level for values in of_rows.values() for level in values})
    body = [
        [name, *(f"{100 * values[level]:.1f}" if level in values else "-" for level in levels)]
        for name, values in of_rows.items()
    ]
    return ["row", *levels], body if levels else []


def _matches(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A line for every matched row and seed."""
    seeds = ["seed"] if len(data["seeds"]) > 1 else []
    body = []
    for row in data["rows"]:
        for of_seed in row["per_seed"]:
            match = of_seed.get("matched")
            if match is None:
                continue
            wanted, reached = match["wanted"], match["reached"]
            line = [row["name"], *([str(of_seed["seed"])] if seeds else []), match["to"], match["by"].replace("_", " ")]
            missed = f"{reached - wanted:+,} ({100 * (reached - wanted) / wanted:+.1f} %)"
            body.append([*line, f"{wanted:,}", f"{reached:,}", missed])
    return ["row", *seeds, "matched to", "by", "there", "here", "missed by"], body


def _differences(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    many_sets, many_seeds = len(data["sets"]) > 1, len(data["seeds"]) > 1
    header = ["row - row", *(["set"] if many_sets else []), "points", "95 % interval"]
    header += ["per seed"] if many_seeds else []
    body = []
    for entry in data["differences"]:
        interval = "-" if entry["interval"] is None else " to ".join(f"{100 * v:+.1f}" for v in entry["interval"])
        line = [f"{entry['row']} - {entry['minus']}", *([entry["set"]] if many_sets else [])]
        line += [f"{100 * entry['mean']:+.1f}", interval]
        line += [", ".join(f"{100 * s['mean']:+.1f}" for s in entry["per_seed"])] if many_seeds else []
        body.append(line)
    return header, body


def _stages(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Every stage once, with the rows it served."""
    stages: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for row in data["rows"]:
        for seed in row["per_seed"]:
            for stage in seed["stages"]:
                served = stages.setdefault(stage["digest"], (stage, []))[1]
                if row["name"] not in served:
                    served.append(row["name"])
    body = [
        [s["name"], s["kind"], s["digest"][:12], f"{s['updates']:,}", f"{s['seconds'] / 60:.1f}", ", ".join(served)]
        for s, served in stages.values()
    ]
    return ["stage", "kind", "digest", "updates", "minutes", "rows"], body


def _rich(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    for line in body:
        table.add_row(*line)
    return table


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *(line(cells) for cells in body)]
