"""Copy a recipe of the project to where the user works: `verl-s2d init quickstart`."""

from __future__ import annotations

import shutil
from pathlib import Path

import verl_s2d
from verl_s2d.errors import UserError
from verl_s2d.validation import suggestion

FOLDER = "recipes"
_QUICKSTART = ("quickstart",)
_BESIDE = {
    "llama": ("qwen3",),
    "planner": _QUICKSTART,
    "quickstart-code": _QUICKSTART,
    "quickstart-logic": _QUICKSTART,
}
"""Recipe -> recipes whose scripts it runs."""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "run.sh")
"""run.sh makes the environment of a clone."""
_SCHEMA = "recipe.schema.json"


def project_recipes() -> dict[str, Path]:
    """Map name -> folder of the project's recipes: inside the installed package, or in the clone around it."""
    package = Path(verl_s2d.__file__).parent
    here = next((place for place in (package / FOLDER, package.parent / FOLDER) if place.is_dir()), None)
    return {path.name: path for path in sorted(here.iterdir()) if any(path.glob("*.yaml"))} if here else {}


def copy_recipe(name: str) -> str:
    """Copy a recipe, and those whose scripts it runs, to recipes/<name>; returns the text to show.

    Raises:
        UserError: there is no such recipe, or the directory exists.
    """
    known = project_recipes()
    if name not in known:
        remedy = f"{suggestion(name, known)} For a recipe of your own give --student, --teacher and --data."
        raise UserError("The project has no recipe of this name.", key="directory", value=name, remedy=remedy)
    target = Path(FOLDER) / name
    if target.exists():
        raise UserError("The directory exists.", key="directory", value=str(target), remedy="Remove it, or use it.")
    for one in (name, *_BESIDE.get(name, ())):
        if not (Path(FOLDER) / one).exists():
            shutil.copytree(known[one], Path(FOLDER) / one, ignore=_LEFT_OUT)
    shutil.copy(known[name].parent / _SCHEMA, FOLDER)
    recipe = sorted(target.glob("*.yaml"))[0]
    lines = [f"verl-s2d {command} {recipe}" for command in ("check", "plan", "run")]
    return "\n".join([f"recipe: {target}", "", "next:", *lines])
