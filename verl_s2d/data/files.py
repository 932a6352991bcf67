"""Files that are either complete or absent: written beside their target, flushed, renamed."""

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
    """Give a temporary path that becomes `path` when the block ends without an error, and is removed otherwise.

    A reader sees all of the new file or all of the old one, also after a kill or a power cut.
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
    """Delete the temporary files that a killed process has left of `written_whole(path)`."""
    path = Path(path)
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON, indented by one space. NaN is refused, because few readers accept it."""
    with written_whole(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # surrogatepass: names of files may hold bytes that are no UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="surrogatepass")


def write_parquet(table: pa.Table, path: str | Path) -> None:
    """Write one parquet file."""
    import pyarrow.parquet as pq  # takes a tenth of a second, which the command line would pay

    with written_whole(path) as temporary:
        pq.write_table(table, temporary)
