"""Make the JSON schema of a recipe from the models that check it, for editors and for the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from verl_s2d.recipe.alarm_settings import Alarm
from verl_s2d.recipe.data_settings import Data
from verl_s2d.recipe.schema import SHORT_FORMS, Recipe
from verl_s2d.recipe.source import ModelSource
from verl_s2d.recipe.until import Plateau
from verl_s2d.signals.credit.credit_registry import known_credits
from verl_s2d.signals.signal_registry import known_signals
from verl_s2d.starter.field_notes import field_notes, summary
from verl_s2d.validation import Section

FILE = "recipe.schema.json"
"""Name of the schema's file beside a recipe, or beside the folders of several."""
_TEXT = {"type": "string"}
_OWN = {"type": "string", "pattern": r"\.py:"}
_WHOLE_SECTION = {ModelSource: _TEXT, Alarm: {"enum": ["log", "stop", "ignore"]}}
_WHOLE_SECTION |= {Plateau: {"enum": ["validation", "divergence"]}}
"""Section -> its short form."""


def schema_line(place: str = FILE) -> str:
    """Write the first line of a recipe, by which editors with a YAML language server find the schema."""
    return f"# yaml-language-server: $schema={place}"


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe, signals and credits of this package included."""
    schema = Recipe.model_json_schema(schema_generator=_Described)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A recipe of verl-s2d"
    schema["properties"] |= {
        role: {"$ref": "#/$defs/ModelSource", "description": f"Short for `models.{role}`."} for role in SHORT_FORMS
    }
    sections = schema["$defs"]
    sections |= {"Signal": _one_of(known_signals()), "Credit": _one_of(known_credits())}
    for name in ("Warmup", "OnPolicyDistillation"):
        _refer(sections[name]["properties"]["signal"], "Signal")
    _refer(sections["StudentReinforcementLearning"]["properties"]["credit"], "Credit")
    return schema


def _refer(entry: dict[str, Any], section: str) -> None:
    for key in ("type", "additionalProperties"):
        entry.pop(key)
    entry["$ref"] = f"#/$defs/{section}"


class _Described(GenerateJsonSchema):
    """Add the descriptions and the short forms that pydantic does not know."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        section, made = schema["cls"], super().model_schema(schema)
        if not issubclass(section, Section):
            return made
        made.pop("title", None)
        made["description"] = summary(section)
        notes = field_notes(section)
        for name, field in section.model_fields.items():
            entry = made["properties"][field.alias or name]
            entry.pop("title", None)
            if name in notes:
                entry["description"] = notes[name]
        if section is Data:
            made["properties"]["prompts"]["anyOf"].append(_TEXT)
        short = next((form for owner, form in _WHOLE_SECTION.items() if issubclass(section, owner)), None)
        if section is Plateau:
            made["required"].remove("window")  # its default depends on `of`
        return {"anyOf": [made, short], "description": made["description"]} if short else made


def _one_of(known: Mapping[str, type[Section]]) -> dict[str, Any]:
    """Return the schema of a section {type: name, key: value}, or of its type alone."""
    forms: list[dict[str, Any]] = [{"enum": sorted(known)}, _OWN]
    forms.append({"type": "object", "properties": {"type": _OWN}, "required": ["type"]})
    forms.append({"type": "object", "maxProperties": 0})
    for name, section in sorted(known.items()):
        own = section.model_json_schema(schema_generator=_Described)
        properties = own["properties"] | {"type": {"const": name}}
        forms.append({key: own[key] for key in ("description", "type", "additionalProperties")})
        forms[-1] |= {"properties": properties, "required": sorted({"type", *own.get("required", ())})}
        forms[-1] |= {"$defs": own["$defs"]} if "$defs" in own else {}
    return {"anyOf": forms}
