"""Digests of files and directories by what is in them, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

FULL_READ_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
_BLOCKS = 16


def file_digest(path: Path) -> str:
    """sha256 of a file: all of it up to 64 MB; beyond that its size, head, tail and evenly spaced blocks of 1 MB.

    A shard of weights that changed at all has changed everywhere, so sampling finds it without reading terabytes.
    """
    sha = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= FULL_READ_BYTES:
            while chunk := stream.read(_BLOCK_BYTES):
                sha.update(chunk)
        else:
            sha.update(f"sampled {size}".encode())
            for i in range(_BLOCKS):
                stream.seek((size - _BLOCK_BYTES) * i // (_BLOCKS - 1))
                sha.update(stream.read(_BLOCK_BYTES))
    return sha.hexdigest()


def directory_digest(path: Path) -> str:
    """sha256 over the names and digests of all files below `path`, hidden ones excepted."""
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            sha.update(f"{name.as_posix()}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()
