"""Recipe keys under `verl:` against verl's own configuration: hydra would only complain when the stage starts."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from verl_s2d.errors import UserError
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.validation import suggestion
from verl_s2d.verl_settings.overrides import bare_key, value_of
from verl_s2d.workflow.graph import Node


def check_verl_keys(nodes: Iterable[Node]) -> None:
    """Raises UserError for the first key that verl's RL configuration does not have, with the nearest one it has.

    The same rules as hydra's: a plain key must exist, `+key` must not, `++key` may.
    """
    for node in nodes:
        if isinstance(node.stage, VerlTrainerStage):
            overrides = merged_verl(node)
            known = verl_keys(value_of(overrides, "model_engine", "dp"))
            for key, value in overrides.items():
                _check_key(key, value, known, node)


def _check_key(key: str, value: Any, known: frozenset[str], node: Node) -> None:
    bare = bare_key(key)
    if not known or key.startswith(("++", "~")) or "." not in bare or "@" in bare or bare.startswith("hydra."):
        return
    added, exists = key.startswith("+"), bare in known
    if added and exists:
        raise UserError(
            f"{node.name}: verl has this key already.",
            key=f"verl.{key}",
            value=value,
            remedy=f"Write {bare} without +.",
        )
    if not added and not exists:
        raise UserError(
            f"{node.name}: verl's configuration has no such key.",
            key=f"verl.{key}",
            value=value,
            remedy=f"{suggestion(bare, known)} To add a new key write +{bare}.",
        )


@functools.cache
def verl_keys(engine: str) -> frozenset[str]:
    """Every dotted key of verl's RL trainer for a model engine (`dp`, `megatron`, ...), from the flattened
    configuration that verl ships; empty when it ships none."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    name = "_generated_ppo_trainer.yaml" if engine == "dp" else f"_generated_ppo_{engine}_trainer.yaml"
    file = Path(next(iter(spec.submodule_search_locations))) / "trainer" / "config" / name
    if not file.is_file():
        return frozenset()
    tree = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return frozenset(_dotted(tree, ""))


def _dotted(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
