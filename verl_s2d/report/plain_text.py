"""A report as text: for a terminal, and in markdown."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from verl_s2d.report.document import Section
from verl_s2d.report.tables import Table

_SPECIAL = re.compile(r"([\\`*\[\]|#])")


def terminal(sections: Sequence[Section]) -> str:
    """The tables meant for a terminal, never narrower than their cells."""
    tables = [_rich(section.title, table) for section in sections if section.in_terminal for table in section.tables]
    text = io.StringIO()
    colours = sys.stdout.isatty()
    # Cells are text, and none of them markup.
    console = Console(file=text, force_terminal=colours, no_color=not colours, markup=False, emoji=False)
    console.width = max(
        console.width, *(console.measure(t, options=console.options.update(width=1000)).maximum for t in tables)
    )
    for table in tables:
        console.print(table)
    return text.getvalue().rstrip("\n")


def markdown(data: Mapping[str, Any], sections: Sequence[Section], *, plots: str) -> str:
    """The whole report.

    Args:
        plots: directory of the plots, as seen from the file.
    """
    recipe = data["run"]["recipe"]
    parts = [f"# Report{f': {_escaped(recipe)}' if recipe else ''}"]
    for section in sections:
        parts.append(f"## {_escaped(section.title)}")
        parts += [_escaped(section.text)] if section.text else []
        for table in section.tables:
            parts += [_escaped(table.caption), _markdown(table)]
        if section.facts:
            parts.append("\n".join(f"- {_escaped(name)}: {_escaped(text)}" for name, text in section.facts))
        for plot in section.plots:
            parts.append(f"{_escaped(plot.title)}\n\n![{_escaped(plot.title)}]({plots}/{plot.name}.svg)")
    return "\n\n".join(parts) + "\n"


def _rich(title: str, table: Table) -> RichTable:
    made = RichTable(title=title, title_justify="left")
    for number, column in enumerate(table.columns):
        made.add_column(column.name, justify="right" if column.numeric else "left", no_wrap=number == 0)
    for line in table.lines:
        made.add_row(*line)
    return made


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"

    header = [line([column.name for column in table.columns]), "|" + "---|" * len(table.columns)]
    return "\n".join([*header, *(line(cells) for cells in table.lines)])


def _escaped(text: str) -> str:
    """Text that markdown shows as it is: names come from recipes and data."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)
