"""Write the minimal recipe of the end-to-end tests, with two steps a stage, outside its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MINIMAL = Path(__file__).parents[1] / "e2e" / "minimal"


def write_minimal_recipe(directory: Path, copd: dict[str, int] | None = None, **changes: Any) -> Path:
    """Write recipe.yaml, with other top-level keys and the rounds of the row copd; return its path."""
    recipe = yaml.safe_load((MINIMAL / "recipe.yaml").read_text()) | changes
    models = [recipe[role] for role in ("student", "teacher", "sft_teacher") if role in recipe]
    models += recipe.get("models", {}).values()
    for source in (*models, *([recipe["data"]["source"]] if "source" in recipe["data"] else [])):
        source["script"] = str(MINIMAL / source["script"])
    recipe["verifier"] = f"{MINIMAL}/{recipe['verifier']}"
    for name in ("teacher_rl", "warmup", "opd", "student_rl"):
        recipe["stages"][name]["steps"] = 2
    recipe["stages"] |= {"copd": copd} if copd else {}
    recipe["cluster"]["stall_minutes"] = 5
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
