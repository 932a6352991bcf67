"""Read prompts without answers: the pool that stages 2a and 2b may read beside the labelled problems or instead."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data.columns import column_type
from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.formats.data_files import read_any
from verl_s2d.data.formats.verl_columns import answers_of, as_verl, needed
from verl_s2d.data.pool_key import POOL_ID, PROMPTS
from verl_s2d.data.problems import COLUMNS, Problem
from verl_s2d.data.slices import require_known
from verl_s2d.errors import UserError

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def read_pool(
    path: str | Path, *, key: str = PROMPTS, columns: Columns | None = None, drop_answers: bool = False
) -> list[Problem]:
    """Read the prompts of a file in any known layout; their ids are digests of their texts.

    Args:
        key: name of the file in errors.
        columns: names of columns, read where the file has the one of the question.
        drop_answers: leave answers out instead of refusing them.

    Raises:
        UserError: the file is unreadable, has no rows or an unusable prompt, or a prompt has an answer.
    """
    table = read_any(path, key=key, select=lambda schema: needed(schema, columns))
    if table.num_rows == 0:
        raise UserError("The file has no prompts.", key=key, value=str(path), remedy="Give at least one.")
    if not drop_answers and (found := answers_of(table, columns)):
        column, answered = found
        raise UserError(
            f"{len(answered)} rows of {path} have an answer, the first is row {answered[0]}: these are labels.",
            key=f"{key}: {column}",
            value=str(path),
            remedy="Give them as data.train, or write them without answers: `verl-s2d convert` with prompts=FILE does.",
        )
    rows = as_verl(table, _of_question(table.schema, columns), key=key, path=path, strict=False, answers=False)
    return [_problem(row, number, path, key) for number, row in enumerate(rows.select(COLUMNS).to_pylist())]


def pool_problem(messages: list[dict[str, Any]], data_source: str) -> Problem:
    """Make a prompt without a label of its messages."""
    return _identified(Problem("", messages, data_source, "", {}))


def pool_table(problems: Sequence[Problem]) -> pa.Table:
    """Make a table in verl's columns that holds no answers."""
    columns = {
        "prompt": pa.array(
            [[{"role": m["role"], "content": m["content"]} for m in p.messages] for p in problems], _MESSAGES
        ),
        "data_source": pa.array([p.data_source for p in problems], pa.string()),
        "reward_model": pa.array([{"style": "rule", "ground_truth": ""}] * len(problems)),
        "extra_info": pa.array([{"index": p.id} for p in problems]),
    }
    return pa.table({name: columns[name] for name in COLUMNS})


def of_sources(pool: Sequence[Problem], sources: Collection[str]) -> list[Problem]:
    """Keep the prompts of some data sources; all if none is named.

    Raises:
        UserError: no prompt has one of them.
    """
    require_known(sources, (prompt.data_source for prompt in pool), f"prompt of {PROMPTS}")
    return [prompt for prompt in pool if not sources or prompt.data_source in sources]


def require_distinct(pool: Sequence[Problem], labelled: Sequence[Problem] = (), *, key: str = PROMPTS) -> None:
    """Refuse a pool that repeats a prompt, or has one of a labelled problem.

    Raises:
        UserError: with the number of such prompts and one of them.
    """
    remedy = "Remove them: `verl-s2d convert` with prompts=FILE leaves them out."
    known: set[str] = set()
    repeated = [p for p in pool if p.text in known or known.add(p.text)]
    texts = {p.text: p.id for p in labelled}
    shared = [p for p in pool if p.text in texts]
    for found, what in ((repeated, "occur more than once"), (shared, "are those of labelled problems")):
        if found:
            raise UserError(
                f"{len(found)} prompts without labels {what}: a prompt would count as two.",
                key=key,
                value=found[0].text,
                remedy=remedy,
            )


def _of_question(schema: pa.Schema, columns: Columns | None) -> Columns | None:
    """Return the names that a file without answers can have."""
    if columns is None:
        return None
    named = columns.question is not None and column_type(schema, columns.question) is not None
    kept = {"template": columns.template}
    kept |= {"question": columns.question, "data_source": columns.data_source} if named else {}
    return Columns(**{name: value for name, value in kept.items() if value is not None})


def _problem(row: Mapping[str, Any], number: int, path: str | Path, key: str) -> Problem:
    messages = row["prompt"] if isinstance(row["prompt"], list) else []
    whole = (isinstance(m, Mapping) and m.get("role") and isinstance(m.get("content"), str) for m in messages)
    problem = Problem("", messages, str(row["data_source"] or Path(path).stem), "", {})
    if not messages or not all(whole) or not problem.text:
        raise UserError(
            f"Row {number} of {path} has no usable prompt.",
            key=f"{key}: prompt",
            value=row["prompt"],
            remedy="A prompt is text, or a list of messages {role, content} whose contents are text.",
        )
    return _identified(problem)


def _identified(problem: Problem) -> Problem:
    made = f"{POOL_ID}{hashlib.sha256(problem.text.encode()).hexdigest()[:16]}"
    return replace(problem, id=made, extra_info={"index": made})
