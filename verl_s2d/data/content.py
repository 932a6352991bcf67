"""Digest files and directories by their content, independent of their location."""

from __future__ import annotations

import hashlib
from pathlib import Path

FULL_READ_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
_BLOCKS = 16


def full_digest(path: Path) -> str:
    """Compute the sha256 of a whole file, in hexadecimal.

    Raises:
        OSError: the file is unreadable.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Compute the identity of a file: its sha256, or above 64 MB a sha256 of its size and 16 evenly spaced 1 MB blocks.

    Training changes a weight shard everywhere, so sampled blocks detect it without reading terabytes.
    """
    size = path.stat().st_size
    if size <= FULL_READ_BYTES:
        return full_digest(path)
    sha = hashlib.sha256(f"sampled {size}".encode())
    with path.open("rb") as stream:
        for i in range(_BLOCKS):
            stream.seek((size - _BLOCK_BYTES) * i // (_BLOCKS - 1))
            sha.update(stream.read(_BLOCK_BYTES))
    return sha.hexdigest()


def directory_digest(path: Path) -> str:
    """Compute a sha256 over the names and identities of all files below `path`, except hidden ones."""
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            sha.update(f"{name.as_posix()}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()
