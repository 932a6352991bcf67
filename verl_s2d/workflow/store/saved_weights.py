"""Check the structure of saved weights without torch: exported model directories and step checkpoints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from verl_s2d.data.weights import safetensors_names

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def export_problem(directory: Path) -> str | None:
    """Name what a Hugging Face model directory lacks; None when it is complete.

    Complete: config.json parses, a tokenizer exists, every safetensors file has the length that its header says, and
    every tensor of the index is in the file that the index names.
    """
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        return f"config.json cannot be read: {error}"
    if not isinstance(config, dict):
        return "config.json is not a mapping"
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return f"no tokenizer (none of {', '.join(TOKENIZER_FILES)})"
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        return "no *.safetensors file"
    tensors: dict[str, set[str]] = {}
    for shard in shards:
        try:
            tensors[shard.name] = safetensors_names(shard)
        except (OSError, ValueError) as error:
            return f"{shard.name}: {error}"
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
        except (OSError, ValueError, KeyError) as error:
            return f"{index.name} cannot be read: {error}"
        for tensor, file in weight_map.items():
            if tensor not in tensors.get(file, ()):
                return f"{index.name} places {tensor} in {file}, which does not have it"
    elif len(shards) > 1:
        return f"{len(shards)} safetensors files without {index.name}"
    if not any(tensors.values()):
        return "the safetensors files hold no tensor"
    return None


def checkpoint_problems(directory: Path) -> list[str]:
    """List `name: what is wrong` for the damaged files of a step checkpoint, from the ends and headers of the files.

    Finds files that a full disk or a kill cut short. A changed byte inside a tensor is not found.
    """
    files = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.suffix in _CHECKS]
    return [f"{p.relative_to(directory)}: {what}" for p in files if (what := _problem(p))]


def _problem(path: Path) -> str | None:
    try:
        _CHECKS[path.suffix](path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        return f"cut short or overwritten ({error})"
    return None


def _open_archive(path: Path) -> None:
    """Read the directory, at the end of the file, of the zip archive that torch.save writes."""
    zipfile.ZipFile(path).close()


_CHECKS: dict[str, Callable[[Path], object]] = {
    ".pt": _open_archive,
    ".safetensors": safetensors_names,
    ".json": lambda path: json.loads(path.read_bytes()),
}
