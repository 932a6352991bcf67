"""Problems in verl's parquet columns.

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
import pyarrow.parquet as pq

from verl_s2d.errors import UserError

COLUMNS = ("prompt", "data_source", "reward_model", "extra_info")
_FIELDS = {"reward_model": ("style", "ground_truth"), "extra_info": ("index",)}


@dataclass(frozen=True)
class Problem:
    """One row. `ground_truth` is empty in files without answers."""

    id: str
    messages: list[dict[str, Any]]
    data_source: str
    ground_truth: Any
    extra_info: dict[str, Any]

    @property
    def text(self) -> str:
        """What tells two problems apart: the contents of the messages, white space normalised."""
        return "\n".join(" ".join(str(m["content"]).split()) for m in self.messages)


def read_table(path: str | Path, *, key: str = "data") -> pa.Table:
    """The parquet file, its columns checked.

    Args:
        key: what to call the file in an error.

    Raises:
        UserError: the file cannot be read, is empty, or lacks one of verl's columns.
    """
    try:
        if Path(path).is_dir():
            # pyarrow would read all the files in it as one table.
            raise IsADirectoryError("it is a directory")
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The data file cannot be read: {reason}", key=key, value=str(path), remedy="Give a parquet file."
        ) from error
    missing = [c for c in COLUMNS if c not in table.column_names]
    for column, fields in _FIELDS.items():
        if column not in missing:
            kind = table.schema.field(column).type
            names = {f.name for f in kind} if pa.types.is_struct(kind) else set()
            missing += [f"{column}.{f}" for f in fields if f not in names]
    if missing:
        raise UserError(
            f"The data file lacks {', '.join(missing)}.",
            key=key,
            value=str(path),
            remedy="Write verl's columns: prompt, data_source, reward_model {style, ground_truth}, extra_info {index}.",
        )
    if table.num_rows == 0:
        raise UserError("The data file has no rows.", key=key, value=str(path), remedy="Give at least one problem.")
    return table


def read_problems(path: str | Path, *, key: str = "data") -> list[Problem]:
    """The problems of a parquet file, in its order.

    Raises:
        UserError: what `read_table` raises, a missing or repeated id, or two ids with the same text.
    """
    return problems_of(read_table(path, key=key), path, key=key)


def problems_of(table: pa.Table, path: str | Path, *, key: str = "data") -> list[Problem]:
    """The rows of a table that `read_table` returned, ids and texts checked to be unique."""
    rows = table.select(COLUMNS).to_pylist()
    for number, row in enumerate(rows):
        _require_whole(row, number, path, key)
    problems = [
        Problem(
            id=str(row["extra_info"]["index"]),
            messages=row["prompt"],
            data_source=row["data_source"],
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
        )
        for row in rows
    ]
    nameless = sum(p.extra_info["index"] is None for p in problems)
    if nameless:
        raise UserError(
            f"{nameless} problems of {path} have no id.",
            key=f"{key}: extra_info.index",
            remedy="Give every problem an id; the accounting of labels is kept by it.",
        )
    _require_unique([p.id for p in problems], f"{key}: extra_info.index", path, "Give every problem an id of its own.")
    _require_unique(
        [p.text for p in problems], f"{key}: prompt", path, "Remove duplicates: one label would count as two."
    )
    return problems


def check_disjoint(
    training: Sequence[Problem], evaluation: Mapping[str, Sequence[Problem]], *, role: str = "training"
) -> None:
    """No evaluation problem may be among the training problems, by its text.

    Ids are not compared: two sources may number their problems alike.

    Args:
        role: what `training` is, for the message.

    Raises:
        UserError: names the set, the number of shared problems and one of them.
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
    """Raises UserError for the first column of a row that has no value, or a prompt that is no conversation."""
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
