"""Open and verify a Hugging Face model directory without torch: what a finished stage hands to the next one."""

from __future__ import annotations

import json
import struct
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_MAX_HEADER_BYTES = 100 * 2**20


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


def safetensors_names(path: Path) -> set[str]:
    """Tensor names in the header of a safetensors file.

    Raises:
        ValueError: the header is damaged or the file is not as long as it says.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError("shorter than its header length field")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"header of {length} bytes in a file of {size}")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError("damaged header") from error
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes long, {8 + length + end} expected")
    return set(header)
