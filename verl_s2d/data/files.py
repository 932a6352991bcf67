"""Write files atomically: into a temporary file beside the target, flushed, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` after the block, or removed if the block raises.

    Readers see the complete new file or the complete old one, even after a kill or a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def discard_unfinished(path: str | Path) -> None:
    """Delete temporary files of `written_whole(path)` that a killed process left behind."""
    path = Path(path)
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON, indented by one space. Raises ValueError for NaN, which few readers accept."""
    with written_whole(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # surrogatepass: file names may contain bytes that are not UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="surrogatepass")


def write_parquet(table: pa.Table, path: str | Path) -> None:
    """Write one parquet file."""
    import pyarrow.parquet as pq  # imported here: it takes a tenth of a second, which every command would pay

    with written_whole(path) as temporary:
        pq.write_table(table, temporary)
