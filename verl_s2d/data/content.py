"""Digest files and directories by their content, independent of their location."""

from __future__ import annotations

import hashlib
from pathlib import Path

FULL_READ_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20
_BLOCKS = 16


def full_digest(path: Path) -> str:
    """Compute the sha256 of all of a file, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Compute the identity of a file: its sha256 up to 64 MB; beyond that a sha256 over its size, head, tail and evenly
    spaced blocks of 1 MB.

    A shard of weights that changed at all has changed everywhere, so sampling finds it without reading terabytes.
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
    """Compute a sha256 over the names and identities of all files below `path`, hidden ones excepted."""
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            sha.update(f"{name.as_posix()}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()
