"""Check external model weights: safetensors only, because a pickle can run code, and no truncated file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

from verl_s2d.errors import UserError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_HEADER_BYTES = 100 * 2**20


def check_weights(model: str | Path, key: str, *, revision: str | None = None) -> None:
    """Raise UserError unless a model directory has its weights as intact safetensors files.

    A hub id is refused if its repository, or the cached part of it, has pickles and no safetensors file.
    """
    directory = Path(model)
    if not directory.is_dir():
        if not directory.is_absolute():
            _check_names(_hub_names(str(model), revision), str(model), key)
        return
    names = [path.name for path in directory.iterdir()]
    _check_names(names, str(model), key)
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise UserError(
            "The directory has no weights (no *.safetensors file).", key=key, value=str(model), remedy=_COPY
        )
    for shard in shards:
        try:
            safetensors_names(shard)
        except (OSError, ValueError) as error:
            raise UserError(f"{shard.name} is damaged: {error}.", key=key, value=str(model), remedy=_COPY) from error


_COPY = "Copy or download the model again."


def _check_names(names: Iterable[str], model: str, key: str) -> None:
    names = list(names)
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"The weights are pickled ({pickles[0]}), and loading a pickle can run any code in it.",
            key=key,
            value=model,
            remedy="Use a revision with safetensors files, or convert it in an isolated environment: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(<directory>), and its tokenizer likewise.",
        )


def _hub_names(name: str, revision: str | None) -> list[str]:
    """List the files of a hub repository, or of its cached snapshot; empty if neither is available."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        return HfApi().list_repo_files(name, revision=revision)
    except Exception:  # network, permission and validation errors have no common base
        found = try_to_load_from_cache(name, "config.json", revision=revision)
        return [path.name for path in Path(found).parent.iterdir()] if isinstance(found, str) else []


def safetensors_names(path: Path) -> set[str]:
    """Read the tensor names in a safetensors file's header.

    Raises:
        ValueError: the header is damaged or does not match the file's length.
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
    try:
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError("damaged header") from error
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes long, {8 + length + end} expected")
    return set(header)
