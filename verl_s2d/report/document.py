"""The sections of a report, which markdown, page and terminal show: headings, tables, plots and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from verl_s2d.report import tables
from verl_s2d.report.by_row.flow import flow_line
from verl_s2d.report.pilot_plots import pilot_plots
from verl_s2d.report.plots import (
    MOST_RAW,
    Plot,
    accuracy_plot,
    cost_plot,
    differences_plot,
    in_order_of_method,
    panel_plot,
)
from verl_s2d.report.story import story
from verl_s2d.report.table_text import Table, as_markdown, as_text, escaped
from verl_s2d.stages.shared.panels import PANELS


@dataclass(frozen=True)
class Section:
    """A heading with its tables, plots, facts and text.

    Attributes:
        facts: (name, text) pairs.
        flows: (row, flow) pairs, whose accuracies are those on `flow_set`.
        in_terminal: show the tables in a terminal, too.
        warning: highlight the section on the page.
    """

    title: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    facts: Sequence[tuple[str, str]] = ()
    flows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = ()
    flow_set: str = ""
    text: str = ""
    in_terminal: bool = False
    warning: bool = False


def document(data: Mapping[str, Any]) -> list[Section]:
    """Make the sections of report.json's content, without empty ones."""
    sections = []
    if told := story(data):
        sections.append(Section("In short", text=" ".join(told), in_terminal=True))
    if data["alarms"]:
        sections.append(Section("Warnings", [tables.alarms_table(data)], in_terminal=True, warning=True))
    accuracy = [accuracy_plot(data, name) for name in data["sets"]]
    sections.append(Section("Rows", [tables.rows_table(data)], accuracy, in_terminal=True))
    gains = [table for name in data["sets"] if (table := tables.gains_table(data, name)).lines]
    if gains:
        plot = cost_plot(data, data["sets"][0])
        sections.append(Section("Gains and costs", gains, [plot] if plot else [], in_terminal=True))
    if flows := [(row["name"], row["flow"]) for row in data["rows"] if row["flow"]]:
        sections.append(Section("Flow", flows=flows, flow_set=data["sets"][0], text=_how_to_read_flows(data)))
    if (matches := tables.matches_table(data)).lines:
        sections.append(Section("Matched rows", [matches], in_terminal=True))
    if data["differences"]:
        plots = [plot for name in data["sets"] if (plot := differences_plot(data, name)) is not None]
        sections.append(Section("Paired differences", [tables.differences_table(data)], plots, in_terminal=True))
    if data["pilot"]:
        verdict = f"Verdict: {data['pilot']['verdict']}. Points have standard errors over problems."
        sections.append(Section("Pilot", plots=pilot_plots(data["pilot"]), text=verdict))
    levels = [table for name in data["sets"] if (table := tables.levels_table(data, name)).columns]
    if levels:
        sections.append(Section("Accuracy by level", levels))
    sources = [table for name in data["sets"] if (table := tables.sources_table(data, name)).columns]
    if sources:
        sections.append(Section("Accuracy by data source", sources, in_terminal=True))
    sections.append(Section("Answers", [tables.answers_table(data, name) for name in data["sets"]]))
    if data["examples"]:
        sections.append(Section("Problems gained and lost", [tables.examples_table(data)]))
    for part in dict.fromkeys(panel.part for panel in PANELS):
        plots = [
            plot
            for panel in PANELS
            if panel.part == part and (plot := panel_plot(data, panel, _trained(data))) is not None
        ]
        if plots:
            sections.append(Section(part, plots=plots, text=_how_to_read(data)))
    if data["stages"]:
        sections.append(Section("Stages", [tables.stages_table(data)]))
    sections.append(Section("This run", facts=_facts(data)))
    return sections


def terminal(sections: Sequence[Section]) -> str:
    """Write the tables meant for a terminal, each below its section's title, and the text of sections without any."""
    shown = [(s.title, part) for s in sections if s.in_terminal for part in (s.tables or [s.text])]
    return as_text(*(part for title, shown_part in shown for part in (f"\n{title}", shown_part))).lstrip("\n")


def markdown(data: Mapping[str, Any], sections: Sequence[Section], *, plots: str) -> str:
    """Write all sections in markdown.

    Args:
        plots: directory of the plots, relative to the file.
    """
    recipe = data["run"]["recipe"]
    parts = [f"# Report{f': {escaped(recipe)}' if recipe else ''}"]
    for section in sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [escaped(section.text)] if section.text else []
        if section.flows:
            lines = ((row, flow_line(flow, section.flow_set)) for row, flow in section.flows)
            parts.append("\n".join(f"- {escaped(row)}: {escaped(line)}" for row, line in lines))
        for table in section.tables:
            parts += [escaped(table.caption), as_markdown(table)]
        if section.facts:
            parts.append("\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in section.facts))
        for plot in section.plots:
            parts.append(f"{escaped(plot.title)}\n\n![{escaped(plot.title)}]({plots}/{plot.name}.svg)")
    return "\n\n".join(parts) + "\n"


def _trained(data: Mapping[str, Any]) -> list[str]:
    """Name the stages that have curves; a stage has the same colour in all plots."""
    return list(dict.fromkeys(s["name"] for s in in_order_of_method(data["stages"]) if s["curves"]))


def _how_to_read_flows(data: Mapping[str, Any]) -> str:
    which = f" on {data['sets'][0]}" if len(data["sets"]) > 1 else ""
    return (
        "T is the teacher, S the student. RL(1h) reads the labels of the first half; 2a and 2b read prompts without "
        f"answers. A number behind a stage is avg@k in percent{which}, where a row evaluated the model."
    )


def _how_to_read(data: Mapping[str, Any]) -> str:
    seeds = " One line per seed." if len(data["seeds"]) > 1 else ""
    return (
        "Metrics over the steps of each stage: thick lines are the moving mean over a tenth of the curve, thin ones "
        f"the values as logged (up to {MOST_RAW} lines). The legend has the first and the last value as logged.{seeds}"
    )


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    run = data["run"]
    facts = [("recipe", run["recipe"]), *run["about"].items()]
    facts += [("seeds", ", ".join(map(str, data["seeds"]))), ("evaluation", _sampling(run["sampling"]))]
    facts.append(("hardware", machines_text(run["machines"])))
    facts += [("began", time_text(run["began"])), ("ended", time_text(run["ended"]))]
    facts.append(("versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in run["versions"].items())))
    facts.append(("models", ", ".join(link for links in run["models"].values() for link in links)))
    return [(name, text) for name, text in [*facts, ("repeat", run["command"])] if text]


def machines_text(machines: Sequence[Mapping[str, Any]]) -> str:
    """Describe the machines of a run: `8 x NVIDIA H200; 16 cores of AMD EPYC, 128 GiB`."""
    return "; or ".join(_machine(machine) for machine in machines)


def _machine(machine: Mapping[str, Any]) -> str:
    gpus = f"{machine['gpus']} x {machine['gpu'] or 'GPU'}; " if machine["gpus"] else ""
    cpu = f" of {machine['cpu']}" if machine["cpu"] else ""
    return f"{gpus}{machine['cores']} cores{cpu}, {machine['memory_gib']:.0f} GiB"


def _sampling(sampling: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} {' and '.join(map(str, values))}" for key, values in sampling.items())


def time_text(seconds: float | None) -> str:
    """Write a time in UTC; empty for None."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
