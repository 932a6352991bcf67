"""A report as one HTML file that asks for nothing from elsewhere and runs no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from verl_s2d.report.document import Section
from verl_s2d.report.svg import inline
from verl_s2d.report.tables import Column, Table


def page(data: Mapping[str, Any], sections: Sequence[Section], drawn: Mapping[str, str]) -> str:
    """The page. Every text is escaped; the stylesheet is the only one that the page's policy lets in.

    Args:
        drawn: name of a plot -> its SVG file's content.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files("verl_s2d.report")
    style = here.joinpath("page.css").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["typeset"] = typeset
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    plots = {
        plot.name: Markup(inline(drawn[plot.name], name=plot.name, label=f"{plot.title}. {plot.about}"))
        for section in sections
        for plot in section.plots
    }
    return template.render(
        title=data["run"]["recipe"] or "Report",
        summary=_summary(data),
        sections=sections,
        plots=plots,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        groups=header_groups,
    )


def typeset(text: str) -> str:
    """The signs that a terminal writes with several, or with a hyphen."""
    return text.replace("+-", "±").replace(" - ", " − ").replace(" to -", " to −").replace("||", "‖")


def header_groups(table: Table) -> list[tuple[str, list[Column]]]:
    """Neighbouring columns of one group, [] where no column has any."""
    if not any(column.group for column in table.columns):
        return []
    groups: list[tuple[str, list[Column]]] = []
    for column in table.columns:
        if groups and column.group and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups


def _summary(data: Mapping[str, Any]) -> str:
    counts = [
        (len(data["rows"]), "row"),
        (len(data["seeds"]), "seed"),
        (len(data["sets"]), "evaluation set"),
        (len(data["stages"]), "stage"),
    ]
    words = [f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts if count]
    return f"{', '.join(words)}, {data['run']['seconds'] / 60:,.1f} minutes of stages."
