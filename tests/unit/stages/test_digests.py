"""The digests of all stages of all recipes, against those that were recorded: what a change of code would build again.

After a change that rebuilds stages, note it in CHANGELOG.md and run `python -m tests.unit.stages.test_digests`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest import mock

import pytest

from tests.support.paths import ROOT
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.method_rows import MADE_ROWS, PROMPT_ROWS
from verl_s2d.stages.planning import build_rows
from verl_s2d.workflow import identity
from verl_s2d.workflow.graph import build_order

RECORDED = Path(__file__).with_name("digests.json")
RECIPES = ("quickstart/quickstart", "qwen3/qwen3-1.7b-from-8b", "qwen3/qwen3-1.7b-from-8b-24gb",
           "qwen3/qwen3-1.7b-from-14b", "qwen3/qwen3-1.7b-from-14b-fsdp", "llama/llama3.1-8b-from-70b")  # fmt: skip


def digests(recipe: str, device: str) -> dict[str, str]:
    """Name of a stage -> its digest, of all rows of a recipe with one teacher and no prompts without labels.

    Files count by their names: editing a recipe's script is no change of the code.
    """

    def by_name(path: Path) -> str:
        return hashlib.sha256(path.name.encode()).hexdigest()

    loaded = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    rows = [name for name in loaded.row_names if name not in {"sft-teacher", *PROMPT_ROWS, *MADE_ROWS}]
    with mock.patch.object(identity, "file_digest", by_name):
        targets = [row.target for row in build_rows(loaded, rows, loaded.seeds[:1], device)]
    return {node.name: node.digest for node in build_order(targets)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_digests_are_those_recorded(recipe: str, device: str):
    assert digests(recipe, device) == json.loads(RECORDED.read_text())[recipe][device]


if __name__ == "__main__":
    found = {recipe: {device: digests(recipe, device) for device in ("cpu", "cuda")} for recipe in RECIPES}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")
