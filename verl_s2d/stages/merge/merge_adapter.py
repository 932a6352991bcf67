"""Merge the LoRA adapter of a verl checkpoint into its weights and write a Hugging Face model.

    python -m verl_s2d.stages.merge.merge_adapter checkpoint=DIR out=DIR

DIR is what verl's FSDP engine wrote for a step: `actor` of an RL checkpoint, or the step directory of a warmup.
Its `huggingface` has base weights and adapter under peft's names, which neither transformers nor vLLM reads; rank and
alpha are in `lora_train_meta.json`. Each weight becomes W + alpha / rank * B A, computed in float32 and stored in W's
type, one file at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from verl_s2d import arguments
from verl_s2d.errors import UserError

_INDEX = "model.safetensors.index.json"
_PREFIX, _BASE, _A, _B = "base_model.model.", ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class Options:
    """Command line of this module."""

    checkpoint: str
    out: str
    """Output directory; overwritten when it exists."""


def merge(checkpoint: Path, out: Path) -> int:
    """Write the merged model; return the number of weights that were merged with an adapter.

    Raises:
        UserError: the checkpoint has no weights, no adapter, or adapters other than LoRA's on linear layers.
    """
    export = checkpoint / "huggingface"
    shutil.rmtree(out, ignore_errors=True)
    with ExitStack() as stack:
        files = {path.name: stack.enter_context(safe_open(path, "pt")) for path in sorted(export.glob("*.safetensors"))}
        names = {file_name: list(file.keys()) for file_name, file in files.items()}
        holders = {name: files[file_name] for file_name in files for name in names[file_name]}
        adapted = {name.removesuffix(_BASE) for name in holders if name.endswith(_BASE)}
        _check(checkpoint, holders, adapted)
        rank, alpha = _settings(checkpoint / "lora_train_meta.json")

        def merged(name: str) -> torch.Tensor:
            weight, layer = holders[name].get_tensor(name), name.removesuffix(_BASE)
            if layer not in adapted or layer == name:
                return weight
            a, b = (holders[layer + part].get_tensor(layer + part).float() for part in (_A, _B))
            if a.shape[0] != rank:
                raise UserError(
                    f"{layer} has an adapter of another rank, {a.shape[0]}",
                    key="lora_train_meta.json: r",
                    value=rank,
                    remedy="give a checkpoint as verl wrote it",
                )
            return weight.float().add_(b @ a, alpha=alpha / rank).to(weight.dtype)

        shutil.copytree(export, out, ignore=shutil.ignore_patterns("*.safetensors", _INDEX))
        places: dict[str, str] = {}
        size = 0
        for file_name in files:
            tensors = {_plain(name): merged(name) for name in names[file_name] if ".lora_" not in name}
            if tensors:
                save_file(tensors, out / file_name, metadata={"format": "pt"})
                places |= dict.fromkeys(tensors, file_name)
                size += sum(tensor.nbytes for tensor in tensors.values())
    if len(set(places.values())) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (out / _INDEX).write_text(json.dumps(index, indent=2))
    return len(adapted)


def _plain(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(_BASE, ".weight").replace(".base_layer.bias", ".bias")


def _check(checkpoint: Path, holders: Mapping[str, Any], adapted: set[str]) -> None:
    known = {layer + part for layer in adapted for part in (_A, _B)}
    found = {name for name in holders if ".lora_" in name}
    if not holders or known != found or not found:
        odd = sorted(known ^ found)
        problem = f"an unsupported adapter, for example {odd[0]}" if odd else "no weights with an adapter"
        raise UserError(
            problem,
            key="checkpoint",
            value=str(checkpoint),
            remedy="give the directory of a LoRA checkpoint that verl's FSDP engine saved with hf_model",
        )


def _settings(path: Path) -> tuple[int, int]:
    try:
        settings = json.loads(path.read_text())
        rank, alpha = int(settings["r"]), int(settings["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"rank and alpha cannot be read: {error}",
            key="checkpoint",
            value=str(path),
            remedy="give a checkpoint as verl wrote it",
        ) from error
    return rank, alpha


def main(options: Options) -> None:
    print(f"{merge(Path(options.checkpoint), Path(options.out))} weights took an adapter in: {options.out}")


if __name__ == "__main__":
    arguments.run(main, Options)
