"""The tables of a report: terminal, markdown and page show the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verl_s2d.report.by_row.flow import flow_line
from verl_s2d.report.table_text import MISSING, Column, Table, count_text, shortened, words


def rows_table(data: Mapping[str, Any]) -> Table:
    """Make a line per row: its accuracy, the published one, and its ledger."""
    samples = "/".join(map(str, data["samples"]))
    columns = words("row")
    published = [s for s in data["sets"] if any(s in row["published"] for row in data["rows"])]
    for name in data["sets"]:
        kinds = [f"avg@{samples}", *(["published"] if name in published else [])]
        columns += [Column(f"{kind} {name}" if len(data["sets"]) > 1 else kind) for kind in kinds]
    ledger = {
        "labels_read": "labels",
        "prompts_read": "prompts",
        "verifier_calls": "verifier calls",
        "unsettled_calls": "without a verdict",
        "unscored_calls": "unscored",
        "judge_calls": "judge calls",
        "judge_tokens": "judge tokens",
        "sampled_tokens": "sampled tokens",
        "teacher_scored_tokens": "scored tokens",
        "updates": "updates",
    }
    for rare in ("prompts_read", "unsettled_calls", "unscored_calls", "judge_calls", "judge_tokens"):
        if not any(row["ledger"].get(rare) for row in data["rows"]):
            del ledger[rare]
    columns += map(Column, (*ledger.values(), "min"))
    lines = []
    for row in data["rows"]:
        line = [row["name"]]
        for name in data["sets"]:
            line.append(_accuracy(row["sets"][name]))
            if name in published:
                line.append(f"{row['published'][name]:.1f}" if name in row["published"] else MISSING)
        line += [count_text(row["ledger"][key]) for key in ledger]
        lines.append([*line, f"{row['ledger']['seconds'] / 60:.1f}"])
    flows = [flow_line(row["flow"], data["sets"][0]) for row in data["rows"]]
    return Table(_rows_caption(data, bool(published)), columns, lines, flows if any(flows) else ())


def gains_table(data: Mapping[str, Any], set_name: str) -> Table:
    """Make a line per row that gained on the cold student; a table without lines where there is none."""
    on_gpus = any(row["gpu_hours"] for row in data["rows"])
    shares = any(row["gains"][set_name]["share"] for row in data["rows"])
    columns = [*words("row"), Column("points gained"), Column("per 1,000 verifier calls")]
    columns += [Column("per GPU-hour" if on_gpus else "per hour")]
    columns += [Column("share of the teacher's gain"), *words("teacher")] if shares else []
    lines = []
    for row in data["rows"]:
        gain = row["gains"][set_name]
        if gain["points"] is None:
            continue
        rates = (gain["per_1000_calls"], gain["per_gpu_hour" if on_gpus else "per_hour"])
        line = [row["name"], f"{100 * gain['points']:+.1f}"]
        line += [MISSING if rate is None else f"{100 * rate:+.3g}" for rate in rates]
        line += _share(gain["share"]) if shares else []
        lines.append(line)
    hours = "GPU-hours are wall time times the GPUs that the run held" if on_gpus else "Hours are wall time"
    caption = (
        f"{set_name}: percentage points gained on cold-student, and what they cost. {hours}, of all stages behind a "
        "row but its evaluation."
    )
    if shares:
        caption += " Share: (student - cold student) / (teacher - cold student), 95 % bootstrap interval over problems."
    return Table(caption, columns, lines)


def _share(share: Mapping[str, Any] | None) -> list[str]:
    if share is None:
        return [MISSING, MISSING]
    low, high = (100 * value for value in share["interval"])
    return [f"{100 * share['mean']:.0f} % ({low:.0f} to {high:.0f})", share["teacher"]]


def matches_table(data: Mapping[str, Any]) -> Table:
    """Make a line per matched row and seed; a table without lines if there is none."""
    many_seeds = len(data["seeds"]) > 1
    columns = [*words("row"), *([Column("seed")] if many_seeds else []), *words("matched to", "by")]
    columns += map(Column, ("there", "here", "missed by"))
    lines = []
    for row in data["rows"]:
        for of_seed in row["per_seed"]:
            if (match := of_seed["matched"]) is None:
                continue
            wanted, reached = match["wanted"], match["reached"]
            line = [row["name"], *([str(of_seed["seed"])] if many_seeds else []), match["to"]]
            missed = f"{reached - wanted:+,} ({100 * (reached - wanted) / wanted:+.1f} %)"
            lines.append([*line, match["by"].replace("_", " "), f"{wanted:,}", f"{reached:,}", missed])
    return Table("These rows stopped at the first step that reached the consumption of another row.", columns, lines)


def differences_table(data: Mapping[str, Any]) -> Table:
    """Make a line per pair of rows and set."""
    many_sets, many_seeds = len(data["sets"]) > 1, len(data["seeds"]) > 1
    columns = words("row - row", *(["set"] if many_sets else []))
    columns += map(Column, ("points", "95 % interval", *(["per seed"] if many_seeds else [])))
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
    """Make a line per row and a column per level; a table without columns if the set has no levels."""
    of_rows = {row["name"]: (row["sets"][set_name] or {}).get("levels", {}) for row in data["rows"]}
    sizes = {level: values["n_problems"] for levels in of_rows.values() for level, values in levels.items()}
    levels = sorted(sizes, key=lambda level: (len(level), level))
    columns = [Column(f"{level} ({sizes[level]} problems)") for level in levels]
    lines = [
        [name, *(_plus_minus(values[level]) if level in values else MISSING for level in levels)]
        for name, values in of_rows.items()
    ]
    caption = f"{set_name}: {_over(data)}, in percent, for the problems of each level."
    return Table(caption, [*words("row"), *columns] if levels else [], lines)


def sources_table(data: Mapping[str, Any], set_name: str) -> Table:
    """Make a line per row and a column per data source; a table without columns if the set has one source.

    Behind the accuracy are the points gained on the student before training: with several teachers an average may rise
    while a domain regresses (MiMo-V2-Flash, section 4.4).
    """
    of_rows = {row["name"]: (row["sets"][set_name] or {}).get("sources", {}) for row in data["rows"]}
    cold = of_rows.get("cold-student", {})
    sizes = {source: values["n_problems"] for sources in of_rows.values() for source, values in sources.items()}
    columns = [Column(f"{source} ({sizes[source]} problems)") for source in sorted(sizes)]
    lines = []
    for name, sources in of_rows.items():
        line = [name]
        for source in sorted(sizes):
            if source not in sources:
                line.append(MISSING)
                continue
            text = _plus_minus(sources[source])
            compared = source in cold and name != "cold-student"
            gained = f" ({100 * (sources[source]['avg'] - cold[source]['avg']):+.1f})" if compared else ""
            line.append(text + gained)
        lines.append(line)
    gain = "; in brackets the points gained on cold-student, negative where a domain regressed" if cold else ""
    caption = f"{set_name}: {_over(data)}, in percent, for the problems of each data source{gain}."
    return Table(caption, [*words("row"), *columns] if sizes else [], lines)


def answers_table(data: Mapping[str, Any], set_name: str) -> Table:
    """Make a line per row: pass@k, mean length and truncation of its answers in the evaluation."""
    of_rows = [(row["name"], row["sets"][set_name]) for row in data["rows"] if row["sets"][set_name] is not None]
    ks = sorted({k for _, values in of_rows for k in values["pass_at"]}, key=int)
    columns = [*words("row"), *map(Column, (*(f"pass@{k}" for k in ks), "mean tokens", "truncated"))]
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


def examples_table(data: Mapping[str, Any]) -> Table:
    """Make a line per problem that the best row gained or lost, with the answers of both rows side by side."""
    names = list(data["examples"][0]["answers"]) if data["examples"] else []
    columns = [*words("problem"), Column("prompt", False, wide=True), *words("truth")]
    columns += [Column(name, False, wide=True) for name in names]
    lines = [
        [
            f"{example['kind']}: {shortened(example['id'], 24)}",
            example["prompt"],
            shortened(example["ground_truth"], 60),
            *(
                f"{answer['right']} of {answer['of']} right: {answer['response']}"
                for answer in example["answers"].values()
            ),
        ]
        for example in data["examples"]
    ]
    caption = (
        "Problems on which the two rows differ most: what the first gained, then what it lost. Of its samples a row "
        "shows a right one where it is ahead, and a wrong one where it is behind."
    )
    return Table(caption, columns, lines)


def stages_table(data: Mapping[str, Any]) -> Table:
    """Make a line per stage: its time, updates and the rows it served."""
    stages, many_seeds = data["stages"], len(data["seeds"]) > 1
    restarted = any(stage["attempts"] > 1 for stage in stages)
    early = any(stage["until"] for stage in stages)
    columns = [*words("stage"), *map(Column, ("minutes", "share", "updates"))]
    columns += [Column("seed")] if many_seeds else []
    columns += [Column("attempts")] if restarted else []
    columns += [*words("kind", "digest"), Column("rows", numeric=False, wide=True)]
    columns += [Column("ended before its maximum", numeric=False, wide=True)] if early else []
    whole, lines = sum(stage["seconds"] for stage in stages), []
    for stage in stages:
        share = f"{100 * stage['seconds'] / (whole or 1.0):.1f} %"
        line = [stage["name"], f"{stage['seconds'] / 60:.2f}", share, f"{stage['updates']:,}"]
        line += [_list(stage["seeds"])] if many_seeds else []
        line += [str(stage["attempts"])] if restarted else []
        line += [stage["kind"], stage["digest"][:12], _list(stage["rows"])]
        lines.append([*line, stage["until"] or MISSING] if early else line)
    caption = f"In order of their start; {whole / 60:.1f} minutes in all, evaluation included."
    return Table(caption, columns, lines)


def alarms_table(data: Mapping[str, Any]) -> Table:
    """Make a line per alarm of a stage."""
    many_seeds = len(data["seeds"]) > 1
    columns = [*words("stage"), *map(Column, ["seed"] if many_seeds else []), Column("from step")]
    columns.append(Column("problem", numeric=False, wide=True))
    lines = []
    for alarm in data["alarms"]:
        line = [alarm["stage"], *([_list(alarm["seeds"])] if many_seeds else [])]
        lines.append([*line, MISSING if alarm["step"] is None else f"{alarm['step']:,}", alarm["text"]])
    return Table("Found in the metrics of the stages.", columns, lines)


def _rows_caption(data: Mapping[str, Any], published: bool) -> str:
    each = "" if len(data["seeds"]) == 1 else ", in brackets each seed, from three on with the 95 % t interval"
    means = "" if len(data["seeds"]) == 1 else ", means over seeds"
    others = " Published are the results that the recipe names." if published else ""
    return (
        f"Seeds: {_list(data['seeds'])}. {_over(data)}, in percent{each}.{others} Labels are problems whose answers "
        "were read, scored tokens those that a teacher scored. Labels, calls, tokens, updates and minutes are those of "
        f"all stages behind a row but its evaluation, work repeated after a crash included{means}."
    )


def _over(data: Mapping[str, Any]) -> str:
    return f"avg@k +- standard error over {'problems' if len(data['seeds']) == 1 else 'seeds'}"


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
