"""Read a data file as one Arrow table: parquet, JSON lines, a JSON list or CSV, plain or compressed (.gz, .zst)."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_s2d.data.formats.messages import plain_messages
from verl_s2d.errors import UserError

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")


def read_any(
    path: str | Path, *, key: str = "data", select: Callable[[pa.Schema], Sequence[str]] | None = None
) -> pa.Table:
    """Read a file by its ending.

    Values of JSON keep their types; a column with several types becomes text. Values of CSV are text, and empty ones
    are null: a reader that guessed would turn the answer 007 into 7.

    Args:
        key: name of the file in errors.
        select: chooses the columns of a parquet that are read, by its schema; all by default.

    Raises:
        UserError: the file is unreadable, or its ending is unknown.
    """
    path = Path(path)
    try:
        if path.is_dir():
            # pyarrow would read all files of a directory as one table.
            raise IsADirectoryError("it is a directory")
        if _ending(path) == ".parquet":
            return pq.read_table(path, columns=select and list(select(pq.read_schema(path))))
        return _READERS[_ending(path)](path)
    except KeyError:
        raise UserError(
            "The format of the data file is unknown.", key=key, value=str(path), remedy=f"Known: {', '.join(FORMATS)}."
        ) from None
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The data file cannot be read: {reason}",
            key=key,
            value=str(path),
            remedy=f"Give a {_ending(path).lstrip('.')} file, or name it by its format: {', '.join(FORMATS)}.",
        ) from error


def row_count(path: str | Path, *, key: str = "data") -> int:
    """Count the rows of a file; of a parquet without reading them. Raises UserError as `read_any`."""
    if _ending(Path(path)) == ".parquet":
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):
            pass  # read_any says what is wrong
    return read_any(path, key=key).num_rows


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), encoding="utf-8-sig", newline="")


def _json_lines(path: Path) -> pa.Table:
    with _text(path) as stream:
        return _table([_object(line, number) for number, line in enumerate(stream, 1) if line.strip()])


def _json(path: Path) -> pa.Table:
    """Read a list of objects; many files of this ending are JSON lines."""
    with _text(path) as stream:
        text = stream.read()
    if not text.lstrip().startswith("["):
        try:
            json.loads(text)
        except ValueError:
            return _json_lines(path)
    rows = json.loads(text)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("it is not a list of objects")
    return _table(rows)


def _object(line: str, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(row, Mapping):
        raise ValueError(f"line {number} is not an object")
    return row


def _csv(path: Path) -> pa.Table:
    csv.field_size_limit(sys.maxsize)
    with _text(path) as stream:
        return _table(list(_records(csv.DictReader(stream, strict=True))))


def _records(reader: csv.DictReader[str]) -> Iterator[dict[str, str | None]]:
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not as many values as the header")
        yield {name: value or None for name, value in row.items()}


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([plain_messages(row.get(name)) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Convert values that share a type, otherwise their texts: the whole number 5 among texts is "5", not 5.0."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass
    return pa.array([_as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
}
