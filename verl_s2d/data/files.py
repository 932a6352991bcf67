"""Files that are either complete or absent: written beside their target, flushed, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends without an error, and is removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def discard_unfinished(path: str | Path) -> None:
    """Delete what a killed process has left of `written_whole(path)`."""
    path = Path(path)
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """JSON, indented by one space. NaN is refused, because few readers accept it."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(table: pa.Table, path: str | Path) -> None:
    """One parquet file."""
    with written_whole(path) as temporary:
        pq.write_table(table, temporary)
