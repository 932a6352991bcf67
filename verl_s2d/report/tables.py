"""The tables of a report, as text cells: what a terminal, markdown and HTML all show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "-"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        group: what it belongs to, for a header of two lines.
        name: complete by itself.
        short: below the group's name; the name itself unless given.
        numeric: aligned to the right.
        wide: text that may take several lines.
    """

    name: str
    group: str = ""
    short: str = ""
    numeric: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Cells as text, the first of a line its heading.

    Attributes:
        spans: of every line where it begins and how long it is, as shares of a whole, where that is to be drawn.
    """

    caption: str
    columns: Sequence[Column]
    lines: Sequence[Sequence[str]]
    spans: Sequence[tuple[float, float]] = ()


def rows_table(data: Mapping[str, Any]) -> Table:
    """What every row reached, what others published for it, and its ledger."""
    samples = "/".join(map(str, data["samples"]))
    columns = [Column("row", numeric=False)]
    published = [s for s in data["sets"] if any(s in row["published"] for row in data["rows"])]
    for name in data["sets"]:
        columns.append(_of_set(f"avg@{samples}", name, data))
        if name in published:
            columns.append(_of_set("published", name, data))
    ledger = ("labels", "verifier calls", "sampled tokens", "teacher-scored tokens", "updates", "minutes")
    columns += [Column(name, "ledger") for name in ledger]
    lines = []
    for row in data["rows"]:
        line = [row["name"]]
        for name in data["sets"]:
            line.append(_accuracy(row["sets"][name]))
            if name in published:
                line.append(f"{row['published'][name]:.1f}" if name in row["published"] else MISSING)
        counts = ("labels_read", "verifier_calls", "sampled_tokens", "teacher_scored_tokens", "updates")
        line += [f"{row['ledger'][key]:,.0f}" for key in counts]
        lines.append([*line, f"{row['ledger']['seconds'] / 60:.1f}"])
    return Table(_rows_caption(data, bool(published)), columns, lines)


def matches_table(data: Mapping[str, Any]) -> Table:
    """A line for every matched row and seed; no lines where there is none."""
    many_seeds = len(data["seeds"]) > 1
    columns = [Column("row", numeric=False), *([Column("seed")] if many_seeds else [])]
    columns += [Column("matched to", numeric=False), Column("by", numeric=False)]
    columns += [Column("there"), Column("here"), Column("missed by")]
    lines = []
    for row in data["rows"]:
        for of_seed in row["per_seed"]:
            if (match := of_seed["matched"]) is None:
                continue
            wanted, reached = match["wanted"], match["reached"]
            line = [row["name"], *([str(of_seed["seed"])] if many_seeds else []), match["to"]]
            missed = f"{reached - wanted:+,} ({100 * (reached - wanted) / wanted:+.1f} %)"
            lines.append([*line, match["by"].replace("_", " "), f"{wanted:,}", f"{reached:,}", missed])
    return Table("These rows stopped at the first step at or past what another row consumed.", columns, lines)


def differences_table(data: Mapping[str, Any]) -> Table:
    """One line a pair of rows and a set."""
    many_sets, many_seeds = len(data["sets"]) > 1, len(data["seeds"]) > 1
    columns = [Column("row - row", numeric=False)]
    columns += [Column("set", numeric=False)] if many_sets else []
    columns += [Column("points"), Column("95 % interval")]
    columns += [Column("per seed")] if many_seeds else []
    lines = []
    for entry in data["differences"]:
        interval = MISSING if entry["interval"] is None else " to ".join(f"{100 * v:+.1f}" for v in entry["interval"])
        line = [f"{entry['row']} - {entry['minus']}", *([entry["set"]] if many_sets else [])]
        line += [f"{100 * entry['mean']:+.1f}", interval]
        line += [", ".join(f"{100 * s['mean']:+.1f}" for s in entry["per_seed"])] if many_seeds else []
        lines.append(line)
    caption = "Percentage points, on the same problems; 95 % bootstrap interval over problems."
    if many_seeds:
        caption = "Percentage points, within a seed; 95 % t interval over seeds (from three seeds on)."
    return Table(caption, columns, lines)


def levels_table(data: Mapping[str, Any], set_name: str) -> Table:
    """Rows down, levels across; no columns where the set has no levels."""
    of_rows = {row["name"]: (row["sets"][set_name] or {}).get("levels", {}) for row in data["rows"]}
    sizes = {level: values["n_problems"] for levels in of_rows.values() for level, values in levels.items()}
    levels = sorted(sizes, key=lambda level: (len(level), level))
    columns = [Column(f"{level} ({sizes[level]} problems)", "level") for level in levels]
    lines = [
        [name, *(_plus_minus(values[level]) if level in values else MISSING for level in levels)]
        for name, values in of_rows.items()
    ]
    caption = f"{set_name}: {_over(data)}, in percent, for the problems of each level."
    return Table(caption, [Column("row", numeric=False), *columns] if levels else [], lines)


def answers_table(data: Mapping[str, Any], set_name: str) -> Table:
    """pass@k, and how long the answers of the evaluation were."""
    of_rows = [(row["name"], row["sets"][set_name]) for row in data["rows"] if row["sets"][set_name] is not None]
    ks = sorted({k for _, values in of_rows for k in values["pass_at"]}, key=int)
    columns = [Column("row", numeric=False), *(Column(f"pass@{k}", "found in k answers", k) for k in ks)]
    columns += [Column("mean tokens", "length"), Column("truncated", "length")]
    lines = [
        [
            name,
            *(f"{100 * values['pass_at'][k]:.1f}" if k in values["pass_at"] else MISSING for k in ks),
            f"{values['mean_tokens']:,.1f}",
            f"{100 * values['truncated']:.1f} %",
        ]
        for name, values in of_rows
    ]
    problems = "/".join(f"{n:,}" for n in sorted({values["n_problems"] for _, values in of_rows}))
    caption = f"{set_name}, {problems} problems: pass@k in percent, unbiased; truncated: answers cut off at the limit."
    return Table(caption, columns, lines)


def stages_table(data: Mapping[str, Any]) -> Table:
    """Every stage once, with the rows it served and its place in the whole."""
    stages, many_seeds = data["stages"], len(data["seeds"]) > 1
    restarted = any(stage["attempts"] > 1 for stage in stages)
    columns = [Column("stage", numeric=False), Column("minutes"), Column("updates")]
    columns += [Column("seed")] if many_seeds else []
    columns += [Column("attempts")] if restarted else []
    columns += [
        Column("kind", numeric=False),
        Column("digest", numeric=False),
        Column("rows", numeric=False, wide=True),
    ]
    whole, before, lines, spans = sum(stage["seconds"] for stage in stages) or 1.0, 0.0, [], []
    for stage in stages:
        line = [stage["name"], f"{stage['seconds'] / 60:.2f}", f"{stage['updates']:,}"]
        line += [_list(stage["seeds"])] if many_seeds else []
        line += [str(stage["attempts"])] if restarted else []
        lines.append([*line, stage["kind"], stage["digest"][:12], _list(stage["rows"])])
        spans.append((before / whole, stage["seconds"] / whole))
        before += stage["seconds"]
    caption = f"In the order in which they began; {whole / 60:.1f} minutes in all, evaluation included."
    return Table(caption, columns, lines, spans)


def alarms_table(data: Mapping[str, Any]) -> Table:
    """What the stages have to be watched for."""
    many_seeds = len(data["seeds"]) > 1
    columns = [Column("stage", numeric=False), *([Column("seed")] if many_seeds else [])]
    columns += [Column("from step"), Column("what", numeric=False, wide=True)]
    lines = []
    for alarm in data["alarms"]:
        line = [alarm["stage"], *([_list(alarm["seeds"])] if many_seeds else [])]
        lines.append([*line, MISSING if alarm["step"] is None else f"{alarm['step']:,}", alarm["text"]])
    return Table("Found in what the stages logged.", columns, lines)


def _rows_caption(data: Mapping[str, Any], published: bool) -> str:
    each = "" if len(data["seeds"]) == 1 else ", in brackets each seed, from three on with the 95 % t interval"
    means = "" if len(data["seeds"]) == 1 else ", means over seeds"
    others = " Published are the results that the recipe names." if published else ""
    return (
        f"Seeds: {_list(data['seeds'])}. {_over(data)}, in percent{each}.{others} Labels are problems whose answers "
        "were read. Labels, calls, tokens, updates and minutes are those of all stages behind a row but its "
        f"evaluation, work repeated after a crash included{means}."
    )


def _over(data: Mapping[str, Any]) -> str:
    return f"avg@k +- standard error over {'problems' if len(data['seeds']) == 1 else 'seeds'}"


def _of_set(what: str, name: str, data: Mapping[str, Any]) -> Column:
    return Column(f"{what} {name}" if len(data["sets"]) > 1 else what, name, what)


def _accuracy(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return MISSING
    each = [f"{100 * seed['avg']:.1f}" for seed in values["per_seed"]]
    text = _plus_minus(values) + (f" ({_list(each)})" if len(each) > 1 else "")
    interval = values["interval"]
    return text if interval is None else f"{text}, {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _plus_minus(values: Mapping[str, Any]) -> str:
    error = "" if values["stderr"] is None else f" +- {100 * values['stderr']:.1f}"
    return f"{100 * values['avg']:.1f}{error}"


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
