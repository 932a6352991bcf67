"""Read the published data sets of `prepare` as records, from any of their layouts.

A set is read from its hub repository, or from a local parquet with verl's columns, the hub's, or those that `prepare`
writes: each field is looked up under all names that it is published with.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data import ground_truths, templates
from verl_s2d.data.columns import Layout, distinct_rows, parquet_batches, table_batches
from verl_s2d.data.content import full_digest
from verl_s2d.data.normalised_text import canonical
from verl_s2d.errors import UserError

_TEXT = ("problem", "Problem", "question", "prompt")
_ANSWER = ("reward_model.ground_truth", "answer", "Answer")
_LEVEL = ("level", "extra_info.level")
_SUBJECT = ("subject", "extra_info.subject")
_IDS = ("extra_info.index", "unique_id", "id", "problem_idx", "ID")

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """Location and format of one published set.

    Attributes:
        hub: repository of the published set, read with the `datasets` library.
        data_source: value of verl's column of that name; verl's own scorers support all of these.
        ids: columns that may hold a problem's id; the first existing one is used.
    """

    name: str
    hub: str
    split: str
    data_source: str
    answers: ground_truths.Kind
    ids: tuple[str, ...] = _IDS

    @property
    def layout(self) -> Layout:
        return Layout(text=_TEXT, answer=_ANSWER, id=self.ids, level=_LEVEL, subject=_SUBJECT)


SOURCES = {
    s.name: s
    for s in (
        Source("dapo-math-17k", "BytedTsinghua-SIA/DAPO-Math-17k", "train", "math_dapo", "integer"),
        # unique_id ("test/precalculus/807.json") names the problem in MATH itself, and its subject.
        Source(
            "math500",
            "HuggingFaceH4/MATH-500",
            "test",
            "HuggingFaceH4/MATH-500",
            "formula",
            ("unique_id", "id", "extra_info.index"),
        ),
        Source("aime24", "HuggingFaceH4/aime_2024", "train", "aime24", "integer"),
        Source("aime25", "math-ai/aime25", "test", "aime25", "integer"),
    )
}


@dataclass(frozen=True)
class Record:
    """A distinct row: the problem without template, its answer as a ground truth, and its number of copies."""

    id: str
    text: str
    answer: str
    level: int | None = None
    subject: str | None = None
    copies: int = 1

    @cached_property
    def canonical(self) -> str:
        """Normalise the text; equal results are the same problem (see `normalised_text.canonical`)."""
        return canonical(self.text)


@dataclass(frozen=True)
class Loaded:
    """Records of one set.

    Attributes:
        identity: origin of the records, independent of the machine.
        templates: number of rows by prompt template; `none` for problems without one.
    """

    source: Source
    records: list[Record]
    identity: dict[str, Any]
    templates: dict[str, int]


def load(source: Source, location: str | None = None) -> Loaded:
    """Read a set from a parquet file or a hub id (`owner/name`, optionally `@revision`); by default its own hub id.

    Raises:
        UserError: the set is unreadable, lacks a column or rows, or a row lacks its problem, id or a usable answer.
    """
    key = f"sources.{source.name}"
    path = Path(location).expanduser() if location is not None else None
    hub = _HUB_ID.fullmatch(location or source.hub)
    if path is not None and (path.exists() or hub is None or path.suffix == ".parquet"):
        rows = distinct_rows(parquet_batches(path, source.layout, key), source.layout, key, str(path))
        identity = {"file": path.name, "sha256": full_digest(path)}
    else:
        dataset, identity = _from_hub(hub.group(1), hub.group(2), source.split, key)
        rows = distinct_rows(table_batches(dataset, source.layout, key), source.layout, key, hub.group())
    found: Counter[str] = Counter()
    return Loaded(source, _records(rows, source, found), identity, dict(sorted(found.items())))


def _from_hub(repository: str, revision: str | None, split: str, key: str) -> tuple[Any, dict[str, Any]]:
    import datasets

    try:
        dataset = datasets.load_dataset(repository, split=split, revision=revision)
    except Exception as error:  # network, permission, format and validation errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The data set cannot be read from the hub: {reason}",
            key=key,
            value=repository,
            remedy=f"Check the network and your access to it, or give a local parquet: {key}=<file>.",
        ) from error
    # `datasets` caches each set in a directory named by its commit, and also reads it from there offline.
    commits = re.findall(r"\b[0-9a-f]{40}\b", " ".join(file["filename"] for file in dataset.cache_files))
    return dataset, {"hub": repository, "split": split, "revision": commits[-1] if commits else revision}


def _records(rows: pa.Table, source: Source, found: Counter[str]) -> list[Record]:
    def refuse(bad: list[dict[str, Any]], what: str, column: str, remedy: str) -> None:
        if bad:
            raise UserError(
                f"{len(bad)} rows of {source.name} {what}, the first for the problem {_short(bad[0]['text'])}.",
                key=f"{source.name}: {column}",
                value=bad[0][column],
                remedy=remedy,
            )

    table = rows.to_pylist()
    for row in table:
        row["text"], template = templates.strip(row["text"] or "")
        row["text"] = row["text"].strip()
        row["parsed"] = ground_truths.ground_truth(row["answer"] or "", source.answers)
        found[template or "none"] += row["copies"]
    refuse([r for r in table if not r["text"]], "have no problem", "text", "Remove them.")
    refuse([r for r in table if not r["id"]], "have no id", "id", "The label ledger counts by id: give each its own.")
    refuse(
        [r for r in table if r["parsed"] is None],
        f"have an answer that is no {source.answers}",
        "answer",
        "Correct them, or remove them.",
    )
    return [
        Record(
            id=row["id"] if not row["id"].isdigit() else f"{source.name}-{row['id']}",
            text=row["text"],
            answer=row["parsed"],
            level=_level(row["level"]),
            subject=row["subject"] or _subject(row["id"]),
            copies=row["copies"],
        )
        for row in table
    ]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _level(text: str | None) -> int | None:
    number = re.search(r"\d+", text or "")
    return int(number.group()) if number else None


def _subject(problem_id: str) -> str | None:
    """Derive MATH's subject from a problem's path, such as `test/counting_and_probability/1.json`."""
    parts = problem_id.split("/")
    if len(parts) != 3 or not parts[2].endswith(".json"):
        return None
    return parts[1].replace("_and_", "_&_").replace("_", " ").title()
