"""Open and verify a Hugging Face model directory without torch: what a finished stage hands to the next one."""

from __future__ import annotations

import json
from pathlib import Path

from verl_s2d.data.weights import safetensors_names

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def export_problem(directory: Path) -> str | None:
    """Why the directory is not a complete model, None when it is.

    Complete: config.json parses, a tokenizer is there, every safetensors file is exactly as long as its header says,
    and every tensor of the index is in the file that the index names.
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
