"""Scripts of recipes: what they import from beside them is in `uses:`, and so part of their digests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from verl_s2d.recipe.load import load_recipe

RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))


def imported(script: Path) -> set[Path]:
    """Return the script and every file of the recipes that it imports, directly or not."""
    found, left = set(), [script.resolve()]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        for name in names:
            places = [folder / f"{name}.py" for folder in (script.resolve().parent, ROOT / "recipes" / "quickstart")]
            left += [place for place in places if place.is_file()][:1]
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_imported_file_is_named(path):
    recipe = load_recipe(path)
    for source in (recipe.data.source, *recipe.models.values()):
        if source is not None and source.script:
            named = {(path.parent / name).resolve() for name in (source.script, *source.uses)}
            assert named == imported(path.parent / source.script)
