"""A report as one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from verl_s2d.report.by_row.flow import cost_lines
from verl_s2d.report.document import Section, machines_text, time_text

_MINUS = re.compile(r"(?<= )-(?= )|(?<![^\s(])-(?=\d)")
"""A dash between words, or before a number that begins a word."""


def page(data: Mapping[str, Any], sections: Sequence[Section], drawn: Mapping[str, str]) -> str:
    """Write the page. Every text is escaped; plots are images, in which a browser runs no script and loads nothing.

    Args:
        drawn: name of a plot -> content of its SVG file.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files("verl_s2d.report")
    style = here.joinpath("page.css").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"typeset": typeset, "costs": cost_lines}
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=data["run"]["recipe"] or "Report",
        summary=_summary(data),
        sections=sections,
        images={name: base64.b64encode(svg.encode()).decode() for name, svg in drawn.items()},
        style=Markup(style),
        # The policy admits this stylesheet only.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def typeset(text: str) -> str:
    """Replace ASCII stand-ins by the mathematical signs."""
    return _MINUS.sub("−", text.replace("+-", "±").replace("||", "‖"))


def _summary(data: Mapping[str, Any]) -> str:
    counts = {"row": "rows", "seed": "seeds", "evaluation set": "sets", "stage": "stages"}
    named = [(len(data[key]), name) for name, key in counts.items()]
    words = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in named if count]
    run = data["run"]
    text = f"{', '.join(words)}, {run['seconds'] / 60:,.1f} minutes of stages."
    where = f"On {machines_text(run['machines'])}." if run["machines"] else ""
    return " ".join(filter(None, (text, where, run["ended"] and f"Ended {time_text(run['ended'])}.")))
