"""Write the reference of a recipe's keys in markdown, from the same models as the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from verl_s2d.starter.recipe_schema import recipe_schema

_HEAD = """# Every key of a recipe

Made by `verl-s2d schema --markdown` from the models that check a recipe. `verl-s2d schema` prints the same as a JSON
schema for editors ([Recipe](recipe.md#schema-for-editors)). A key without a default is required, or is a section with
defaults of its own.
"""
_SECTIONS = {
    "models": "ModelSource",
    "data": "Data",
    "data.source": "DataScript",
    "data.columns": "Columns",
    **{f"stages.{name}": name for name in ("teacher_rl", "rollouts", "pass_rates", "warmup", "opd", "student_rl")},
    **{f"stages.{name}": name for name in ("copd", "g_zero")},
    "stages.*.until": "Until",
    "stages.*.until.plateau": "Plateau",
    "stages.*.problem_weights": "ProblemWeights",
    "stages.opd.prefix": "Prefix",
    "stages.opd.servers": "Servers",
    "evaluation": "Evaluation",
    "matched": "Matched",
    "planner": "Planner",
    "planner.thresholds": "Thresholds",
    "planner.pilot": "PilotSettings",
    "cluster": "Cluster",
}
"""Heading -> name of the section, or of the field of `stages` that has it."""


def recipe_reference() -> str:
    """Return the page."""
    schema = recipe_schema()
    sections = schema["$defs"]
    stages = sections["Stages"]["properties"]
    parts = [_HEAD, "## The recipe", _table(schema)]
    for heading, name in _SECTIONS.items():
        section = _mapping(sections[_referred(stages[name]) if name in stages else name])
        parts += [f"## `{heading}`", _plain(section["description"]), _table(section)]
    parts += ["## `alarms`", _plain(sections["Alarms"]["description"]), _alarms(sections)]
    parts += ["## Signals", "Of `stages.warmup.signal` and `stages.opd.signal`; [Signals](signals.md) explains them."]
    parts += [_types(sections["Signal"]), "## Credits", "Of `stages.student_rl.credit`.", _types(sections["Credit"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _types(section: Mapping[str, Any]) -> str:
    """Write a line for each type of a signal or credit, with its keys and their defaults."""
    lines = ["| type | what it is | keys and defaults |", "|---|---|---|"]
    for form in section["anyOf"]:
        if "additionalProperties" not in form:
            continue
        known = {key: entry for key, entry in form["properties"].items() if key != "type"}
        keys = ", ".join(_with_default(key, entry) for key, entry in known.items())
        text = _plain(form["description"].partition("\n\n")[0])
        cells = (f"`{form['properties']['type']['const']}`", text, keys or "none")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _with_default(key: str, entry: Mapping[str, Any]) -> str:
    return f"`{key}: {json.dumps(entry['default'])}`" if "default" in entry else f"`{key}`, required"


def _alarms(sections: Mapping[str, Any]) -> str:
    parts = ["Each takes `action`: log (default), stop or ignore; `name: stop` is short for `name: {action: stop}`."]
    for alarm, entry in sections["Alarms"]["properties"].items():
        section = _mapping(sections[_referred(entry)])
        keys = {key: value for key, value in section["properties"].items() if key != "action"}
        parts += [f"### `alarms.{alarm}`", _plain(section["description"])]
        parts += [_table(section | {"properties": keys})] if keys else []
    return "\n\n".join(parts)


def _table(section: Mapping[str, Any]) -> str:
    required = section.get("required", ())
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, entry in section["properties"].items():
        default = "" if key in required or "default" not in entry else _default(entry)
        cells = (f"`{key}`", _type(entry), default, _plain(entry.get("description", "")))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _default(entry: Mapping[str, Any]) -> str:
    """Write a default; nothing for a section's, whose own keys have theirs."""
    if isinstance(entry["default"], dict) and entry["default"]:
        return ""
    text = json.dumps(entry["default"], ensure_ascii=False)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _type(entry: Mapping[str, Any]) -> str:
    alternatives = entry.get("anyOf") or [entry]
    return " or ".join(dict.fromkeys(word for one in alternatives for word in _words(one)))


def _words(entry: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in entry:
        yield {"Signal": "type or mapping", "Credit": "type or mapping"}.get(_referred(entry), "section")
    elif "enum" in entry or "const" in entry:
        yield ", ".join(map(str, entry.get("enum", [entry.get("const")])))
    elif entry["type"] == "array":
        yield f"list of {_type(entry['items'])}"
    elif entry["type"] == "object":
        below = entry.get("additionalProperties")
        yield f"mapping to {_type(below)}" if isinstance(below, dict) and below else "mapping"
    else:
        yield {"string": "text", "boolean": "true, false"}.get(entry["type"], entry["type"]) + _bounds(entry)


def _bounds(entry: Mapping[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return "".join(f" {word} {entry[key]:g}" for key, word in words.items() if key in entry)


def _referred(entry: Mapping[str, Any]) -> str:
    """Name the section that a property holds."""
    found = next(one for one in (entry, *entry.get("anyOf", ())) if "$ref" in one)
    return found["$ref"].rpartition("/")[2]


def _mapping(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the long form of a section that has a short one."""
    return section if "properties" in section else section["anyOf"][0]


def _plain(text: str) -> str:
    """Keep text in angle brackets as it is: outside of code a site would read it as HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"<(?=[\w/])", "&lt;", part) for part in parts)
