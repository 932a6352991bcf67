"""Choose problems that a row gained and lost against another one, with an answer of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_s2d.report.row_results import RowResult

EACH, MOST_TEXT = 3, 400
"""Problems of either kind; characters of an answer, of which the end is kept."""
_COLUMNS = ("id", "response", "correct", "prompt", "ground_truth")

Answers = Sequence[Mapping[str, Any]]
"""Rows of generations.parquet."""


def read_answers(file: Path, set_name: str, ids: Sequence[str]) -> Answers:
    """Read the samples of some problems from generations.parquet; none from a file without prompts, as earlier versions
    wrote it, or one that is gone or damaged."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        if not set(_COLUMNS) <= set(pq.read_schema(file).names):
            return []
        # The type is named: that of no ids would be null, which text cannot be compared with.
        chosen = (pc.field("set") == set_name) & pc.field("id").isin(pa.array(ids, pa.string()))
        return pq.read_table(file, columns=list(_COLUMNS), filters=chosen).to_pylist()
    except (OSError, pa.ArrowInvalid):
        return []


def examples_of(row: RowResult, other: RowResult, set_name: str) -> list[dict[str, Any]]:
    """List the problems on which two rows differ most, at most EACH that `row` gained and EACH that it lost.

    Returns:
        Entries with id, kind (gained or lost), prompt, ground_truth, and of both rows by name: right and of (numbers of
        samples) and response: a right one of the row that is ahead, a wrong one of the other.
    """
    if row.answers is None or other.answers is None:
        return []
    rates = [{p["id"]: p["correct"] / p["samples"] for p in r.result["per_problem"][set_name]} for r in (row, other)]
    ahead = {i: rate - rates[1][i] for i, rate in rates[0].items() if i in rates[1]}
    ranked = sorted(ahead, key=lambda i: (-ahead[i], i))
    gained = [i for i in ranked[:EACH] if ahead[i] > 0]
    lost = [i for i in reversed(ranked[-EACH:]) if ahead[i] < 0]
    samples = {r.name: _by_id(r.answers(set_name, [*gained, *lost])) for r in (row, other)}
    return [
        {
            **{"id": i, "kind": kind, "prompt": _line(first["prompt"]), "ground_truth": _line(first["ground_truth"])},
            "answers": {
                name: _answer(found[i], wanted=(name == row.name) == (kind == "gained"))
                for name, found in samples.items()
            },
        }
        for kind, ids in (("gained", gained), ("lost", lost))
        for i in ids
        if all(i in found for found in samples.values())
        for first in samples[row.name][i][:1]
    ]


def _by_id(answers: Answers) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        if answer["prompt"] is not None:
            found.setdefault(answer["id"], []).append(answer)
    return found


def _line(text: str) -> str:
    """Write text in one line: line breaks are not printable."""
    return " ".join(text.split())


def _answer(samples: Answers, *, wanted: bool) -> dict[str, Any]:
    """Describe a row's samples of a problem by one that is right (or wrong) as wanted, if there is one."""
    shown = next((sample for sample in samples if sample["correct"] == wanted), samples[0])
    text = _line(shown["response"])
    text = text if len(text) <= MOST_TEXT else f"… {text[-MOST_TEXT:]}"
    return {"right": sum(sample["correct"] for sample in samples), "of": len(samples), "response": text}
