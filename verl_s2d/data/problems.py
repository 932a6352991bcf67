"""Read and check problems in verl's parquet columns.

prompt: list of {role, content}; data_source: str; reward_model: {style, ground_truth}; extra_info: {index, ...}.
The problem id is extra_info.index, as text, and is unique within a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.formats.data_files import read_any
from verl_s2d.data.formats.messages import plain_messages
from verl_s2d.data.formats.verl_columns import as_verl, has_columns, needed
from verl_s2d.errors import UserError

COLUMNS = ("prompt", "data_source", "reward_model", "extra_info")


@dataclass(frozen=True)
class Problem:
    """One problem. `ground_truth` is empty in files without answers."""

    id: str
    messages: list[dict[str, Any]]
    data_source: str
    ground_truth: Any
    extra_info: dict[str, Any]

    @property
    def text(self) -> str:
        """Join the contents of the messages, with normalised white space; equal texts are equal problems."""
        return "\n".join(" ".join(str(m["content"]).split()) for m in self.messages)


def read_table(
    path: str | Path, *, key: str = "data", columns: Columns | None = None, own_columns: bool = False
) -> pa.Table:
    """Read a data file of any format and known layout (data/formats/verl_columns.py) in verl's columns.

    Args:
        key: name of the file in errors.
        columns: names of its columns.
        own_columns: a file without these columns is read by its own layout, with the template of `columns`.

    Raises:
        UserError: the file is unreadable, has no rows, or lacks questions or answers.
    """
    table = read_any(path, key=key, select=lambda schema: needed(schema, columns))
    if table.num_rows == 0:
        raise UserError("The data file has no rows.", key=key, value=str(path), remedy="Give at least one problem.")
    if columns is not None and own_columns and not has_columns(table.schema, columns):
        columns = Columns(template=columns.template) if columns.template else None
    return as_verl(table, columns, key=key, path=path)


def read_problems(
    path: str | Path, *, key: str = "data", columns: Columns | None = None, own_columns: bool = False
) -> list[Problem]:
    """Read the problems of a data file, in its order; `columns` and `own_columns` as in `read_table`.

    Raises:
        UserError: as in `read_table`, or two problems have the same id or the same text.
    """
    return problems_of(read_table(path, key=key, columns=columns, own_columns=own_columns), path, key=key)


def problems_of(table: pa.Table, path: str | Path, *, key: str = "data") -> list[Problem]:
    """Convert a table of `read_table` to problems, and check that ids and texts are unique."""
    rows = table.select(COLUMNS).to_pylist()
    for number, row in enumerate(rows):
        _require_whole(row, number, path, key)
    problems = as_problems(rows)
    _require_unique(
        [p.text for p in problems],
        f"{key}: prompt",
        path,
        "Remove duplicates, as `verl-s2d convert` does: one label would count as two.",
    )
    _require_unique([p.id for p in problems], f"{key}: extra_info.index", path, "Give every problem an id of its own.")
    return problems


def as_problems(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Build problems of whole rows in verl's columns."""
    return [
        Problem(
            id=str(row["extra_info"]["index"]),
            messages=plain_messages(row["prompt"]),
            data_source=row["data_source"],
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
        )
        for row in rows
    ]


def check_disjoint(
    training: Sequence[Problem], evaluation: Mapping[str, Sequence[Problem]], *, role: str = "training"
) -> None:
    """Refuse evaluation problems that are among the training problems, by text.

    Ids are not compared, because two sources may use the same numbers.

    Args:
        role: name of `training` in the message.

    Raises:
        UserError: with the set, the number of shared problems and one of them.
    """
    texts = {p.text: p.id for p in training}
    for name, problems in evaluation.items():
        shared = [p for p in problems if p.text in texts]
        if shared:
            raise UserError(
                f"{len(shared)} evaluation problems are among the {role} problems, "
                f"for example {shared[0].text!r} ({role} id {texts[shared[0].text]}).",
                key=f"eval.{name}",
                value=shared[0].id,
                remedy=f"Remove them from the {role} file; an accuracy measured on them means nothing.",
            )


def _require_whole(row: Mapping[str, Any], number: int, path: str | Path, key: str) -> None:
    """Raise UserError for the first empty column of a row, or a prompt that is not a list of messages."""
    for column in COLUMNS:
        value = row[column]
        whole = value is not None
        if column == "prompt":
            messages = value if isinstance(value, list) else []
            whole = bool(messages) and all(
                isinstance(m, Mapping) and m.get("role") is not None and m.get("content") is not None for m in messages
            )
        if not whole:
            raise UserError(
                f"Row {number} of {path} has no usable {column}.",
                key=f"{key}: {column}",
                value=value,
                remedy="A prompt is a list of messages {role, content}; no other column may be empty.",
            )


def _require_unique(values: Sequence[str], key: str, path: str | Path, remedy: str) -> None:
    repeated = [v for v, count in Counter(values).items() if count > 1]
    if repeated:
        raise UserError(
            f"{len(repeated)} values occur more than once in {path}.", key=key, value=repeated[0], remedy=remedy
        )
