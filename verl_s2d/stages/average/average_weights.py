"""Average the weights of Hugging Face models of one shape and write the mean as a model.

    python -m verl_s2d.stages.average.average_weights out=DIR models.0=DIR models.1=DIR

A weight of the mean is sum_k W_k / K in the first model's type, added in float64: equal models are their own mean.
Configuration, tokenizer and the division into files are the first model's.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from verl_s2d import arguments
from verl_s2d.errors import UserError


@dataclass(frozen=True)
class Options:
    """Command line of this module."""

    out: str
    """Output directory; overwritten when it exists."""
    models: dict[str, str] = field(default_factory=dict)
    """Directories of the models, by number."""


def average(models: list[Path], out: Path) -> int:
    """Write the mean of the models; return the number of averaged weights.

    Raises:
        UserError: fewer than two models, or models whose weights differ in name or shape.
    """
    if len(models) < 2:
        raise UserError("a mean needs two models", key="models", value=[str(m) for m in models], remedy="name another")
    shutil.rmtree(out, ignore_errors=True)
    with ExitStack() as stack:
        holders = [_holders(model, stack) for model in models]
        for model, others in zip(models[1:], holders[1:], strict=True):
            _check(models[0], holders[0], model, others)
        first = sorted(models[0].glob("*.safetensors"))
        shutil.copytree(models[0], out, ignore=shutil.ignore_patterns("*.safetensors"))
        for file in first:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
            save_file({name: _mean(name, holders) for name in names}, out / file.name, metadata={"format": "pt"})
    return len(holders[0])


def _holders(model: Path, stack: ExitStack) -> dict[str, Any]:
    """Map name of a weight -> the open file that holds it."""
    files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(model.glob("*.safetensors"))]
    found = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no mapping)
    if not found:
        raise UserError("the model has no weights", key="models", value=str(model), remedy="give a complete directory")
    return found


def _check(first: Path, weights: dict[str, Any], model: Path, others: dict[str, Any]) -> None:
    odd = sorted(weights.keys() ^ others.keys())
    shapes = {
        name: (weights[name].get_slice(name).get_shape(), others[name].get_slice(name).get_shape())
        for name in weights.keys() & others.keys()
    }
    differing = sorted(name for name, (one, other) in shapes.items() if one != other)
    if odd or differing:
        what = f"only one has {odd[0]}" if odd else f"{differing[0]} is {shapes[differing[0]]}"
        raise UserError(
            f"models of different shapes have no mean: {what}",
            key="models",
            value=[str(first), str(model)],
            remedy="average models that were trained from the same one",
        )


def _mean(name: str, holders: list[dict[str, Any]]) -> torch.Tensor:
    weight = holders[0][name].get_tensor(name)
    total = weight.double()
    for others in holders[1:]:
        total += others[name].get_tensor(name).double()
    return (total / len(holders)).to(weight.dtype)


def main(options: Options) -> None:
    models = [Path(path) for _, path in sorted(options.models.items(), key=lambda entry: int(entry[0]))]
    print(f"{average(models, Path(options.out))} weights are the mean of {len(models)} models: {options.out}")


if __name__ == "__main__":
    arguments.run(main, Options)
