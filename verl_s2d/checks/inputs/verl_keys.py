"""Check recipe keys under `verl:` against verl's own configuration; hydra would refuse them only at a stage's start."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from verl_s2d.errors import Faults, UserError
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.validation import suggestion
from verl_s2d.verl_settings.generated import verl_keys
from verl_s2d.verl_settings.overrides import bare_key, value_of
from verl_s2d.workflow.graph import Node


def check_verl_keys(nodes: Iterable[Node]) -> None:
    """Raise UserError for the keys that verl's RL configuration lacks, with the nearest existing ones.

    The same rules as hydra's: a plain key must exist, `+key` must not, `++key` may.
    """
    faults = Faults()
    for node in nodes:
        if isinstance(node.stage, VerlTrainerStage):
            overrides = merged_verl(node)
            known = verl_keys(value_of(overrides, "model_engine", "dp"))
            for key, value in overrides.items():
                with faults.collected():
                    _check_key(key, value, known, node)
    faults.raise_found()


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
