"""Find the shape of every model in a plan, without weights and if possible without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.sizing.shapes import PUBLISHED, ModelShape, ShapeUnknown, shape_of
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

_HUB_SECONDS = 3


class Models:
    """Shapes of a plan's models by stage and role; each model is looked up once."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._found: dict[str, ModelShape | str] = {}

    def shape(self, node: Node, role: str = "model") -> ModelShape | None:
        """Return the shape of a stage's model in a role, traced back to before its training; None if unknown."""
        source = origin(node, role)
        name = source.location if isinstance(source, External) else source.label
        if name not in self._found:
            try:
                self._found[name] = self._look_up(source)
            except ShapeUnknown as why:
                self._found[name] = str(why)
        found = self._found[name]
        return None if isinstance(found, str) else found

    def frozen(self, node: Node) -> list[ModelShape | None]:
        """Return the shapes of a stage's frozen models in its signal's order; None for an unknown one."""
        return [self.shape(node, role) for role in node.stage.frozen_roles(node)]

    def largest_frozen(self, node: Node) -> ModelShape | None:
        """Return the largest frozen model, which decides the peak as they run in turn; None without a known one."""
        known = [shape for shape in self.frozen(node) if shape is not None]
        return max(known, key=lambda shape: shape.parameters, default=None)

    @property
    def unknown(self) -> list[str]:
        """List one line for each model of unknown shape, with the reason and the remedy."""
        return [found for found in self._found.values() if isinstance(found, str)]

    def _look_up(self, source: External | Node) -> ModelShape:
        if isinstance(source, Node):
            directory = self._plan.context.directory(source)
            if not is_built(source, directory):
                raise ShapeUnknown(f"{source.name}: not made yet; its shape is known once its script has run")
            return _described(_read(directory / "config.json"), source.name)
        if not source.is_hub:
            return _described(_read(Path(source.location) / "config.json"), f"{source.key}: {source.location}")
        given = self._plan.recipe.models[source.key].config
        if given is not None:
            return _described(self._given(given, source.key), f"{source.key}.config: {given}")
        return _of_hub(source)

    def _given(self, name: str, role: str) -> Mapping[str, Any]:
        path = self._plan.recipe.directory / Path(name).expanduser()
        try:
            return _read(path)
        except ShapeUnknown as why:
            raise UserError(
                f"The model's configuration cannot be read: {why}.",
                key=f"{role}.config",
                value=name,
                remedy="Give the path of a config.json.",
            ) from None


def origin(node: Node, role: str) -> External | Node:
    """Trace a model back to before any training: an external model, or the script that makes one."""
    if role in node.externals:
        return node.externals[role]
    source = node.inputs[role]
    return origin(source, "model") if "model" in source.sources else source


def _described(config: Mapping[str, Any], name: str) -> ModelShape:
    try:
        return shape_of(config)
    except ShapeUnknown as why:
        raise ShapeUnknown(f"{name}: {why}") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ShapeUnknown(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise ShapeUnknown(f"{path} is not a config.json")
    return config


def _of_hub(model: External) -> ModelShape:
    """Look up a hub model's shape: in the local cache, then the published shapes, then the hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(model.location, "config.json", revision=model.revision)
    if isinstance(cached, str):
        return _described(_read(Path(cached)), f"{model.key}: {model.location}")
    if model.location in PUBLISHED:
        return PUBLISHED[model.location]
    try:
        file = hf_hub_download(model.location, "config.json", revision=model.revision, etag_timeout=_HUB_SECONDS)
    except Exception:  # network, permission and validation errors have no common base
        raise ShapeUnknown(
            f"{model.key}: {model.location} is neither in the hub's cache here nor among the published shapes, and the "
            f"hub does not give it: write its config.json to a file and name that under {model.key}.config"
        ) from None
    return _described(_read(Path(file)), f"{model.key}: {model.location}")
