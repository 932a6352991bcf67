"""sha256 of what stages leave behind, and whether it is still what they left."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
"""What lies in a stage's directory beside its result."""
_THREADS = 8
_SETTLED_SECONDS = 2.0

_Fingerprint = tuple[int, int, int, int, int]
_known: dict[str, tuple[_Fingerprint, str]] = {}


def full_digest(path: Path) -> str:
    """sha256 of all of a file; read once a process as long as device, inode, size and both times stay.

    Not even once remembered for a file changed within the last two seconds: another change in the same tick of the
    clock would leave the times as they are.

    Raises:
        OSError: the file cannot be read.
    """
    fingerprint = _fingerprint(path)
    known = _known.get(str(path))
    if known is not None and known[0] == fingerprint:
        return known[1]
    settled = time.time() - _SETTLED_SECONDS > max(fingerprint[3:]) / 1e9
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if settled and _fingerprint(path) == fingerprint:
        _known[str(path)] = fingerprint, digest
    return digest


def output_files(directory: Path) -> list[Path]:
    """The files of a stage's result, sorted; hidden ones are not part of it."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        parts = path.relative_to(directory).parts
        if parts[0] not in NOT_OUTPUT and not any(part.startswith(".") for part in parts):
            files.append(path)
    return files


def describe_outputs(directory: Path) -> list[dict[str, Any]]:
    """Name, size and sha256 of every output file, after they have reached the disk: a manifest must not outlive a power
    cut that its files do not."""
    files = output_files(directory)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(_flush, files))
        digests = list(threads.map(full_digest, files))
    return [
        {"name": path.relative_to(directory).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    ]


def damage(directory: Path, outputs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the outputs that a manifest records: `name: what`, one a file; empty when nothing is.

    Sizes are compared first; of files with the right size the digest, where one was recorded.
    """
    outputs = list(outputs)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda output: _problem(directory / output["name"], output), outputs)
        return [f"{output['name']}: {what}" for output, what in zip(outputs, found, strict=True) if what]


def unread_bytes(directory: Path, outputs: Sequence[Mapping[str, Any]]) -> int:
    """How many bytes `damage` would have to read that this process has not read before."""
    return sum(output["bytes"] for output in outputs if str(directory / output["name"]) not in _known)


def _problem(path: Path, output: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != output["bytes"]:
            return f"{size} bytes long, {output['bytes']} when it was written"
        if "sha256" in output and full_digest(path) != output["sha256"]:
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
