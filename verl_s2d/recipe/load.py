"""Read a recipe: yaml -> Recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from verl_s2d import redaction
from verl_s2d.errors import UserError
from verl_s2d.recipe.cli_overrides import overridden, with_variables
from verl_s2d.recipe.schema import Origin, Recipe
from verl_s2d.recipe.shrink import shrunk
from verl_s2d.validation import validated


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Read `1e-3` as a number (in yaml 1.1 it is text) and dates as text, and refuse a key given twice."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._flattened: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the keys of `<<: *other`. The mapping's own keys replace them, so repetitions are sought before."""
        if id(node) in self._flattened:
            return
        self._flattened.add(id(node))
        seen: set = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(
                    f"The key is given twice, the second time on line {key_node.start_mark.line + 1}.",
                    key=str(key),
                    remedy="Keep one of the two.",
                )
            seen.add(key)
        super().flatten_mapping(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
    for first, forms in _Loader.yaml_implicit_resolvers.items()
}


def load_recipe(path: str | Path, overrides: Iterable[str] = (), *, shrink: str | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        overrides: `dotted.key=value` in the place of what the file says.
        shrink: `cpu` or `cuda`: return the recipe at tiny size for this device (recipe/shrink); None: as it is.

    Raises:
        UserError: the file cannot be read, a key is unknown or missing, or a value has the wrong type or range.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(
            f"The recipe cannot be read: {error.strerror or error}.",
            key="recipe",
            value=str(path),
            remedy="Check the path.",
        ) from error
    origin = Origin(path.resolve(), tuple(overrides), shrink)
    data = overridden(_read(text, "recipe", str(path)), origin.overrides, _read_value)
    data = with_variables(data, _read_value)
    redaction.remember(redaction.secrets_in(data))
    recipe = validated(Recipe, data, context=origin)
    if shrink is None:
        return recipe
    return validated(Recipe, shrunk(data, recipe.directory, shrink), context=origin)


def _read_value(key: str, text: str) -> Any:
    return _read(text, key, text)


def _read(text: str, key: str, value: str) -> Any:
    """Read yaml; key and value are named when it is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(
            f"This is not valid yaml: {error}", key=key, value=value, remedy="Correct the line named above."
        ) from error
