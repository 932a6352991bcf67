"""Are the files of a step checkpoint whole? Told from the files alone, without unpickling anything.

torch writes zip archives with a CRC-32 of every record, so truncation and changed bits show without a digest of ours
(verl writes checkpoints while a stage runs, on whichever machine).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verl_s2d.data.weights import safetensors_names

_THREADS = 8


def checkpoint_problems(directory: Path) -> list[str]:
    """`name: what is wrong`, one a damaged file below the directory; all of every file is read."""
    files = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.suffix in _PROBLEM]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(_problem, files)
        return [f"{p.relative_to(directory)}: {what}" for p, what in zip(files, found, strict=True) if what]


def _problem(path: Path) -> str | None:
    try:
        return _PROBLEM[path.suffix](path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return f"not a whole archive ({error})"
    return None if broken is None else f"its record {broken} has changed (CRC differs)"


def _safetensors(path: Path) -> str | None:
    try:
        safetensors_names(path)
    except ValueError as error:
        return str(error)
    return None


def _json(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return "is not JSON: it was cut short or overwritten"
    return None


_PROBLEM: dict[str, Callable[[Path], str | None]] = {".pt": _archive, ".safetensors": _safetensors, ".json": _json}
