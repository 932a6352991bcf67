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
    if small.get("labels"):
        small["labels"] = min(TRAIN_PROBLEMS, small["labels"])
    return small
