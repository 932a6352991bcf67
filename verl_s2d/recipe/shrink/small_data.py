"""Replace the data of a recipe by their shortest problems, which small_sets.py chooses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.recipe.shrink.small_sets import TRAIN_PROBLEMS

_SCRIPT = Path(__file__).with_name("small_sets.py")


def small_data(data: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return the section with a script as its source, whether it had files or a script."""
    small = {key: value for key, value in data.items() if key not in ("source", "train", "eval", "expected", "columns")}
    uses = [str(_SCRIPT.with_name("digit_sums.py"))]
    if data.get("source") is not None:
        source = data["source"]
        script = directory / source["script"]
        args = {"script": str(script), **{f"args.{name}": value for name, value in source.get("args", {}).items()}}
        uses += [str(script), *(str(directory / name) for name in source.get("uses", ()))]
    else:
        files = {"train": data["train"], **{f"eval.{name}": file for name, file in data["eval"].items()}}
        args = {name: str(directory / Path(file).expanduser()) for name, file in files.items()}
        uses += args.values()
        args |= {f"columns.{name}": value for name, value in (data.get("columns") or {}).items()}
    small["source"] = {"script": str(_SCRIPT), "args": args, "uses": uses}
    if data.get("prompts") is not None:
        small["prompts"] = _small_pool(data, directory)
    if small.get("labels"):
        small["labels"] = min(TRAIN_PROBLEMS, small["labels"])
    return small


def _small_pool(data: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return a script as the source of the prompts without labels."""
    prompts, uses = data["prompts"], [str(_SCRIPT.with_name("digit_sums.py"))]
    if isinstance(prompts, Mapping):
        script = str(directory / prompts["script"])
        args = {"script": script, **{f"args.{name}": value for name, value in prompts.get("args", {}).items()}}
        uses += [script, *(str(directory / name) for name in prompts.get("uses", ()))]
    else:
        files = [prompts] if isinstance(prompts, str) else prompts
        args: dict[str, Any] = {"prompts": [str(directory / Path(file).expanduser()) for file in files]}
        uses += args["prompts"]
        args |= {f"columns.{name}": value for name, value in (data.get("columns") or {}).items()}
    return {"script": str(_SCRIPT), "args": args, "uses": uses}
