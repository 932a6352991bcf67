"""Replace the models of a recipe by tiny ones of the same architecture, which tiny_chat_model.py makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError

FAMILIES = ("qwen3", "llama")
"""Architectures of which there is a tiny one: tiny_chat_model.FAMILIES."""

_SCRIPT = Path(__file__).with_name("tiny_chat_model.py")
_SIZES = ({"layers": 2, "hidden": 64}, {"layers": 3, "hidden": 96})


def tiny_models(models: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return role -> source. A model that a script makes stays; roles that share a model share its tiny one.

    The student's is the smallest: 0.14 million parameters, the others' 0.37 million.

    Args:
        models: role -> source, or the hub id or directory alone.
        directory: of the recipe, from which relative paths count.

    Raises:
        UserError: a model of an architecture without a tiny one.
    """
    made: dict[str, Mapping[str, Any]] = {}
    small = {}
    for role in sorted(models, key=lambda role: role != "student"):
        source = {"model": models[role]} if isinstance(models[role], str) else models[role]
        if source.get("script") is not None:
            small[role] = source
            continue
        which = f"{source['model']}@{source.get('revision')}"
        if which not in made:
            size = _SIZES[min(len(made), 1)]
            made[which] = {"family": _family(source, directory, role), **size, "seed": len(made)}
        small[role] = {"script": str(_SCRIPT), "args": made[which], "uses": [str(_SCRIPT.with_name("digit_sums.py"))]}
    return small


def _family(source: Mapping[str, Any], directory: Path, role: str) -> str:
    """Read the architecture from the model's config where it is on this machine, otherwise from its name."""
    name = str(source["model"]).lower()
    for file in filter(None, (source.get("config"), f"{source['model']}/config.json")):
        path = directory / Path(file).expanduser()
        if path.is_file():
            name = str(json.loads(path.read_text()).get("model_type", name)).lower()
            break
    found = [family for family in FAMILIES if family in name]
    if not found:
        raise UserError(
            "There is no tiny model of this architecture for --shrink.",
            key=role,
            value=source["model"],
            remedy=f"Known: {', '.join(FAMILIES)}. Or let a script make a small one: `{role}: {{script: ...}}`.",
        )
    return found[0]
