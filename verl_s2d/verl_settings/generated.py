"""Read keys and defaults of verl's RL configuration from the flattened files that verl ships, without composing it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from verl_s2d.errors import UserError


@functools.cache
def generated(engine: str = "dp") -> Mapping[str, Any]:
    """Read the configuration of a model engine (`dp`, `megatron`, ...), interpolations as they stand; empty when verl
    ships none for it."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        return {}
    name = "_generated_ppo_trainer.yaml" if engine == "dp" else f"_generated_ppo_{engine}_trainer.yaml"
    file = Path(next(iter(spec.submodule_search_locations))) / "trainer" / "config" / name
    if not file.is_file():
        return {}
    return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@functools.cache
def verl_keys(engine: str) -> frozenset[str]:
    """List every dotted key of verl's RL trainer for a model engine; empty when verl ships no configuration for it."""
    return frozenset(_dotted(generated(engine), ""))


@functools.cache
def verl_default(key: str) -> Any:
    """Look up the value of a dotted key where neither overlay nor recipe gives one.

    Raises:
        UserError: verl is not installed, or has no such key.
    """
    value: Any = generated()
    for name in key.split("."):
        if name not in value:
            remedy = "Install verl 0.9.1 (docs/install.md)."
            raise UserError("verl's configuration has no such key.", key=key, remedy=remedy)
        value = value[name]
    return value


def _dotted(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
