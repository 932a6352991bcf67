"""Record the sha256 of stage outputs, and compare outputs with the record."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from verl_s2d.data.content import full_digest

NOT_OUTPUT = (
    "metrics",
    "attempts",
    "hydra",
    "checkpoints",
    "verifier",
    "worker-logs",
    "log.txt",
    "manifest.json",
    "alarms.jsonl",
    "stopped.json",
)
"""Names in a stage's directory that are not part of its result."""
_THREADS = 8
_SETTLED_SECONDS = 2.0

_Fingerprint = tuple[int, int, int, int, int]
_known: dict[str, tuple[_Fingerprint, str]] = {}


def known_digest(path: Path) -> str:
    """Compute the sha256 of a file; cached per process until device, inode, size or either time changes.

    Files modified in the last two seconds are not cached: a second write may leave the times unchanged.

    Raises:
        OSError: the file cannot be read.
    """
    fingerprint = _fingerprint(path)
    known = _known.get(str(path))
    if known is not None and known[0] == fingerprint:
        return known[1]
    settled = time.time() - _SETTLED_SECONDS > max(fingerprint[3:]) / 1e9
    digest = full_digest(path)
    if settled and _fingerprint(path) == fingerprint:
        _known[str(path)] = fingerprint, digest
    return digest


def output_files(directory: Path) -> list[Path]:
    """List the files of a stage's result, sorted; hidden files are not part of it."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        parts = path.relative_to(directory).parts
        if parts[0] not in NOT_OUTPUT and not any(part.startswith(".") for part in parts):
            files.append(path)
    return files


def describe_outputs(directory: Path) -> list[dict[str, Any]]:
    """List name, size and sha256 of every output file.

    The files are flushed to disk first: a manifest must not survive a power cut that its files do not.
    """
    files = output_files(directory)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(_flush, files))
        digests = list(threads.map(known_digest, files))
    return [
        {"name": path.relative_to(directory).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    ]


def damage(directory: Path, outputs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Compare outputs with what a manifest records: `name: what is wrong` for each damaged file.

    Sizes are compared first, then the digests of files with the right size.
    """
    outputs = list(outputs)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda output: _problem(directory / output["name"], output), outputs)
        return [f"{output['name']}: {what}" for output, what in zip(outputs, found, strict=True) if what]


def unread_bytes(directory: Path, outputs: Sequence[Mapping[str, Any]]) -> int:
    """Sum the bytes that `damage` would read and this process has not read before."""
    return sum(output["bytes"] for output in outputs if str(directory / output["name"]) not in _known)


def _problem(path: Path, output: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != output["bytes"]:
            return f"{size} bytes long, {output['bytes']} when it was written"
        if known_digest(path) != output.get("sha256"):
            return "its content is not what was written (sha256 differs)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _fingerprint(path: Path) -> _Fingerprint:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
