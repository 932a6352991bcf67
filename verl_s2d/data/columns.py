"""Extract a problem's five fields from Arrow columns of various layouts, and merge repeated rows.

DAPO-Math-17k has 1.8 million rows, each repeated 100 times, so files are read in batches and only new rows are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from verl_s2d.errors import UserError

BATCH = 65_536
"""Rows per batch."""


@dataclass(frozen=True)
class Layout:
    """Field -> names of columns that may hold it (`struct.member` for members); the first existing one is used."""

    text: tuple[str, ...]
    answer: tuple[str, ...]
    id: tuple[str, ...]
    level: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()


FIELDS = tuple(f.name for f in fields(Layout))
_OPTIONAL = ("level", "subject")


def parquet_batches(path: Path, layout: Layout, key: str) -> Iterator[pa.Table]:
    """Yield the fields of a parquet file in batches of rows.

    Raises:
        UserError: the file is unreadable or lacks a field.
    """
    try:
        file = pq.ParquetFile(path)
        chosen = choose_columns(file.schema_arrow, layout, key, str(path))
        for batch in file.iter_batches(BATCH, columns=_tops(chosen)):
            yield _fields(pa.Table.from_batches([batch]), chosen, key, str(path))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The data file cannot be read: {reason}", key=key, value=str(path), remedy="Give a parquet file."
        ) from error


def table_batches(dataset: Any, layout: Layout, key: str) -> Iterator[pa.Table]:
    """Yield the fields of a `datasets.Dataset` in batches of rows. Raises UserError if it lacks one."""
    chosen = choose_columns(dataset.features.arrow_schema, layout, key, key)
    for table in dataset.select_columns(_tops(chosen)).with_format("arrow").iter(BATCH):
        yield _fields(table, chosen, key, key)


def distinct_rows(batches: Iterable[pa.Table], layout: Layout, key: str, where: str) -> pa.Table:
    """Collect distinct rows in order of first appearance: the fields as text, and `copies`, the count of each row.

    Raises:
        UserError: the data set has no rows.
    """
    known = None
    for batch in batches:
        start = 0 if known is None else pc.max(known["row"]).as_py() + 1
        numbers = pa.array(range(start, start + batch.num_rows), pa.int64())
        ones = pa.array([1] * batch.num_rows, pa.int64())
        batch = batch.append_column("row", numbers).append_column("copies", ones)
        batch = batch if known is None else pa.concat_tables([known, batch])
        grouped = batch.group_by(list(FIELDS)).aggregate([("row", "min"), ("copies", "sum")])
        known = grouped.rename_columns([*FIELDS, "row", "copies"])
    if known is None or known.num_rows == 0:
        raise UserError("The data set has no rows.", key=key, value=where, remedy="Give at least one problem.")
    return known.sort_by("row").drop_columns("row")


def choose_columns(schema: pa.Schema, layout: Layout, key: str, where: str) -> dict[str, str]:
    """Map each field to its column. Raises UserError with the fields that have none."""
    chosen, missing = {}, []
    for field in FIELDS:
        names = getattr(layout, field)
        name = next((n for n in names if column_type(schema, n) is not None), None)
        if name is not None:
            chosen[field] = name
        elif field not in _OPTIONAL:
            missing.append(f"{field} (in {' or '.join(names)})")
    if missing:
        raise UserError(
            f"The data set lacks {', '.join(missing)}.",
            key=key,
            value=where,
            remedy="Use the published file, or verl's columns: prompt, reward_model.ground_truth, extra_info.index.",
        )
    return chosen


def column_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Look up the type of a column or of a struct's member (`struct.member`); None if there is none."""
    top, _, member = name.partition(".")
    if top not in schema.names:
        return None
    kind = schema.field(top).type
    if not member:
        return kind
    index = kind.get_field_index(member) if pa.types.is_struct(kind) else -1
    return kind.field(index).type if index >= 0 else None


def _tops(chosen: dict[str, str]) -> list[str]:
    return sorted({name.partition(".")[0] for name in chosen.values()})


def _fields(table: pa.Table, chosen: dict[str, str], key: str, where: str) -> pa.Table:
    columns = {}
    for field in FIELDS:
        if field not in chosen:
            columns[field] = pa.nulls(table.num_rows, pa.string())
            continue
        top, _, member = chosen[field].partition(".")
        column = table[top].combine_chunks()
        column = pc.struct_field(column, member) if member else column
        if field == "text" and (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            column = _only_message(column, key, where)
        columns[field] = _text(column, f"{key}: {chosen[field]}", where)
    return pa.table(columns)


def _only_message(prompts: pa.Array, key: str, where: str) -> pa.Array:
    """Return the contents of prompts that are single user messages."""
    kind = prompts.type.value_type
    if not pa.types.is_struct(kind) or min(kind.get_field_index("role"), kind.get_field_index("content")) < 0:
        raise UserError(
            "The prompts are no chat messages.", key=f"{key}: prompt", value=where, remedy="Write {role, content}."
        )
    lengths = pc.list_value_length(prompts)
    single = pc.all(pc.equal(lengths, 1), skip_nulls=True, min_count=0).as_py()
    messages = pc.list_element(prompts, 0) if single else None
    if messages is None or not pc.all(pc.equal(pc.struct_field(messages, "role"), "user"), min_count=0).as_py():
        raise UserError(
            "A prompt is more than one message of the user.",
            key=f"{key}: prompt",
            value=where,
            remedy="Only plain problems and single user messages can be put into another template.",
        )
    return pc.struct_field(messages, "content")


def _text(column: pa.Array, key: str, where: str) -> pa.Array:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if not any(of_kind(column.type) for of_kind in kinds):
        raise UserError(
            f"The column has type {column.type}.", key=key, value=where, remedy="Text is expected (or whole numbers)."
        )
    return pc.cast(column, pa.string())
