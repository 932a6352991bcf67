r"""Turn the columns of a published data file into verl's: prompt, data_source, reward_model, extra_info.

Known layouts: verl's own (GSM8K, MATH and DAPO as its examples write them), question and answer (GSM8K), problem and
answer (OpenR1-Math, DeepScaleR), problem and solution (MATH), chat messages with or without the assistant's. Any other
file is read with a `Columns` map. The answer is a column, the text after a marker (GSM8K's ####), or the last \boxed{}
of a solution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data.columns import column_type
from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.formats.messages import is_messages, plain_messages
from verl_s2d.data.ground_truths import ground_truth, last_box
from verl_s2d.data.templates import ask, check_template
from verl_s2d.errors import UserError
from verl_s2d.validation import suggestion

TRUTH = "reward_model.ground_truth"
_INDEX = "extra_info.index"
_QUESTIONS = ("question", "problem", "Problem", "prompt", "messages", "query")
_ANSWERS = (TRUTH, "answer", "Answer", "final_answer", "expected_answer", "ground_truth", "target", "solution")
_IDS = (_INDEX, "id", "unique_id", "uuid", "ID", "problem_idx", "index")
_MARK = "####"


def has_columns(schema: pa.Schema, columns: Columns) -> bool:
    """Tell whether a file has all columns that a map names."""
    return all(n is None or column_type(schema, n) is not None for n in (columns.question, columns.answer, columns.id))


def needed(schema: pa.Schema, columns: Columns | None) -> list[str]:
    """List the columns of a file that are read. Nested ones (whole generations) would only weigh, unless verl's."""
    if {"prompt", "reward_model"} <= set(schema.names):
        return schema.names
    chosen = columns or Columns()
    named = {name.partition(".")[0] for name in (chosen.question, chosen.answer, chosen.id) if name}
    kept = named | {"prompt", "messages", "reward_model", "extra_info"}
    return [field.name for field in schema if field.name in kept or not pa.types.is_nested(field.type)]


def is_verl(table: pa.Table) -> bool:
    """Tell whether a table can go to verl as it is: plain text in messages of role and content, an id in every row."""
    wanted = ("prompt", "data_source", TRUTH, "reward_model.style", _INDEX)
    if any(column_type(table.schema, name) is None for name in wanted):
        return False
    prompt = column_type(table.schema, "prompt")
    if not (pa.types.is_list(prompt) or pa.types.is_large_list(prompt)) or not pa.types.is_struct(prompt.value_type):
        return False
    text = all(pa.types.is_string(f.type) or pa.types.is_large_string(f.type) for f in prompt.value_type)
    named = {f.name for f in prompt.value_type} == {"role", "content"}
    return text and named and None not in _values(table, _INDEX)


def as_verl(
    table: pa.Table,
    columns: Columns | None,
    *,
    key: str,
    path: str | Path,
    strict: bool = True,
    answers: bool = True,
) -> pa.Table:
    """Convert a table of any known layout to verl's columns; other columns of plain values go to extra_info.

    Args:
        columns: names of columns that the file has; None for a known layout.
        key, path: name of the file in errors.
        strict: otherwise missing answers are empty, and ids that several rows of verl's share are made anew.
        answers: otherwise a file may have no column of them.

    Raises:
        UserError: no column has the question or the answer, a named column is absent, a problem has no answer, or the
            rows have no common type.
    """
    if columns is None and strict and is_verl(table):
        return table
    chosen, names = columns or Columns(), table.schema.names
    check_template(chosen.template)
    own = {"prompt", "reward_model"} <= set(names)
    question = _choose(table, chosen.question, ("prompt",) if own else _QUESTIONS, "question", key, path)
    optional = not answers or _is_chat(table, question)
    answer = _choose(table, chosen.answer, _ANSWERS, "answer", key, path, optional=optional)
    identity = chosen.id or next((n for n in _IDS if n != question and _is_id(table, n, strict)), None)
    if chosen.id is not None:
        _choose(table, chosen.id, (), "id", key, path)

    prompts = [plain_messages(value) for value in _values(table, question)]
    texts = [_reply(p) for p in prompts] if answer is None else _values(table, answer)
    untouched = answer == TRUTH and chosen.after is None
    truths = texts if untouched else _truths(texts, chosen.after)
    if strict and not untouched:
        _require_answers(texts, truths, chosen.after, f"{key}: {answer or question}", path)
    asked = [_messages(prompt, chosen.template) for prompt in prompts]
    ids = _values(table, identity) if identity else [None] * table.num_rows
    used = {question, answer, identity, "data_source", "prompt", "messages", "extra_info"}
    infos = _infos(table, names if own else used)
    for number, info in enumerate(infos):
        known = ids[number]
        info["index"] = _made_id(asked[number]) if known is None else str(known)
        if not untouched and isinstance(texts[number], str) and texts[number] != truths[number]:
            info.setdefault("solution", texts[number])
    try:
        made = {
            "data_source": _sources(table, chosen.data_source, path),
            "prompt": pa.array(asked),
            "reward_model": _rewards(table, truths),
            "extra_info": pa.array(infos),
        }
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        remedy = "Give a column values of one type, and messages the same fields."
        raise UserError(f"The rows do not fit one table: {reason}", key=key, value=str(path), remedy=remedy) from error
    return pa.table({name: table[name] for name in names} | made) if own else pa.table(made)


def answers_of(table: pa.Table, columns: Columns | None) -> tuple[str, list[int]] | None:
    """Find the first column that holds answers, the ends of conversations included, and its rows that have one."""
    named = [name for name in (columns and columns.answer, columns and columns.question) if name]
    for name in dict.fromkeys((*named, *_ANSWERS, "extra_info.answer", "extra_info.solution", *_QUESTIONS)):
        if column_type(table.schema, name) is None:
            continue
        asks = name in _QUESTIONS or (columns is not None and name == columns.question)
        values = _values(table, name)
        texts = [_reply(plain_messages(value)) for value in values] if asks else values
        if rows := [number for number, text in enumerate(texts) if _as_text(text).strip()]:
            return name, rows
    return None


def _choose(
    table: pa.Table,
    named: str | None,
    known: Sequence[str],
    what: str,
    key: str,
    path: str | Path,
    *,
    optional: bool = False,
) -> str | None:
    names = table.schema.names
    if named is not None:
        if column_type(table.schema, named) is None:
            remedy = suggestion(named, names)
            raise UserError(f"{path} has no such column.", key=f"columns.{what}", value=named, remedy=remedy)
        return named
    found = next((n for n in known if column_type(table.schema, n) is not None and _is_present(table, n)), None)
    if found is None and not optional:
        raise UserError(
            f"The data file lacks a column of the {what} ({', '.join(known)}). It has {', '.join(names) or 'none'}.",
            key=key,
            value=str(path),
            remedy=f"Name it (data.columns.{what} of a recipe, {what}= of `verl-s2d convert`), or write "
            "verl's columns: prompt, data_source, reward_model {style, ground_truth}, extra_info {index}.",
        )
    return found


def _values(table: pa.Table, name: str) -> list[Any]:
    """Read a column, or a member of a struct that may itself be null."""
    top, _, member = name.partition(".")
    values = table[top].to_pylist()
    return [value and value.get(member) for value in values] if member else values


def _is_present(table: pa.Table, name: str) -> bool:
    top = name.partition(".")[0]
    return table.num_rows == 0 or table[top].null_count < table.num_rows


def _is_id(table: pa.Table, name: str, strict: bool) -> bool:
    """Tell whether a column can be the id: it has one of its own for every row.

    If strict, ids of verl's own column are not judged here: the reader refuses repeated ones.
    """
    if column_type(table.schema, name) is None:
        return False
    values = _values(table, name)
    return (name == _INDEX and strict) or (None not in values and len({str(value) for value in values}) == len(values))


def _is_chat(table: pa.Table, question: str | None) -> bool:
    return question is not None and any(_reply(plain_messages(v)) is not None for v in _values(table, question)[:1])


def _reply(prompt: Any) -> str | None:
    """Return the assistant's text at the end of a conversation."""
    return prompt[-1].get("content") if is_messages(prompt) and prompt[-1]["role"] == "assistant" else None


def _messages(prompt: Any, template: str | None) -> Any:
    """Build the messages of a prompt: text becomes one of the user; an assistant's answer at the end is left out."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": ask(prompt, template)}]
    if not is_messages(prompt):
        return prompt
    asked = prompt[:-1] if _reply(prompt) is not None else prompt
    if template is None or not asked or not isinstance(asked[-1].get("content"), str):
        return asked
    return [*asked[:-1], {**asked[-1], "content": ask(asked[-1]["content"], template)}]


def _truths(answers: Sequence[Any], after: str | None) -> list[str]:
    texts = [_as_text(answer) for answer in answers]
    marked = any(texts) and all(_MARK in text for text in texts if text)
    return [_final(text, after or (_MARK if marked else None)) for text in texts]


def _require_answers(
    answers: Sequence[Any], truths: Sequence[str], after: str | None, key: str, path: str | Path
) -> None:
    """Raise UserError for rows without an answer."""
    bad = [number for number, truth in enumerate(truths) if not truth]
    if bad:
        why = f"no answer after {after!r}" if after else "no answer"
        raise UserError(
            f"{len(bad)} rows of {path} have {why}, the first is row {bad[0]}.",
            key=key,
            value=answers[bad[0]],
            remedy="Remove them: `verl-s2d convert` leaves such rows out and counts them.",
        )


def _final(text: str, mark: str | None) -> str:
    r"""Return the answer behind a mark; without a mark that in the last \boxed{}, or the whole text."""
    if mark is not None:
        _, found, text = text.rpartition(mark)
        text = text.strip() if found else ""
        # As verl's example does, because its scorer compares digits: 1,080 is 1080.
        return ground_truth(text, "integer") or text
    box = last_box(text)
    return text.strip() if box is None else box.strip()


def _as_text(answer: Any) -> str:
    """Write an answer as a person would: 72.0 as 72, 2e-05 as 0.00002; a missing one (null, NaN) is empty."""
    if answer is None or answer != answer:
        return ""
    if isinstance(answer, float):
        plain = format(Decimal(f"{answer:.15g}"), "f")
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    return answer if isinstance(answer, str) else str(answer)


def _made_id(messages: Any) -> str:
    """Make an id of the text alone, so that it stays when rows are added, removed or sorted."""
    contents = [str(m.get("content")) for m in messages] if is_messages(messages) else [str(messages)]
    return hashlib.sha256("\n".join(" ".join(text.split()) for text in contents).encode()).hexdigest()[:16]


def _infos(table: pa.Table, used: Container[str | None]) -> list[dict[str, Any]]:
    """Collect extra_info, and every unused column of plain values."""
    present = _values(table, "extra_info") if "extra_info" in table.schema.names else [None] * table.num_rows
    infos = [dict(info) if isinstance(info, dict) else {} for info in present]
    for field in table.schema:
        if field.name not in used and not pa.types.is_nested(field.type):
            for info, value in zip(infos, table[field.name].to_pylist(), strict=True):
                info.setdefault(field.name, value)
    return infos


def _sources(table: pa.Table, named: str | None, path: str | Path) -> pa.Array | pa.ChunkedArray:
    if named is None and "data_source" in table.schema.names:
        return table["data_source"]
    return pa.array([named or Path(path).name.partition(".")[0]] * table.num_rows, pa.string())


def _rewards(table: pa.Table, truths: list[Any]) -> pa.Array:
    model = _values(table, "reward_model") if "reward_model" in table.schema.names else [{}] * table.num_rows
    styled = [
        None if kept is None else {"style": "rule", **kept, "ground_truth": truth}
        for kept, truth in zip(model, truths, strict=True)
    ]
    return pa.array(styled)
