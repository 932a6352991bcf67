"""Slice the labelled problems into `all` and its disjoint parts `1h` and `2h`, each also without answers.

    python -m verl_s2d.data.slices train=FILE out=DIR [labels=N] [split=0.5] [seed=S] [eval.<name>=FILE ...]
        [validation=FILE] [columns.<name>=<column> ...] [data_sources=["<data source>", ...]]

The seed and the problem ids alone decide the selection and the parts: not the file's order, and no random number
generator, whose stream may change with a release. With data_sources, each slice keeps only its problems of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d import arguments
from verl_s2d.data.files import write_json, write_parquet
from verl_s2d.data.formats.column_names import columns_of
from verl_s2d.data.label_split import HALF, first_part, require_parts
from verl_s2d.data.problems import COLUMNS, Problem, check_disjoint, problems_of, read_problems, read_table
from verl_s2d.errors import UserError

VALIDATION = "validation"


@dataclass(frozen=True)
class Options:
    """Command line of this module."""

    train: str
    """File of labelled problems."""
    out: str
    labels: int | None = None
    """Number of labelled problems to use; null for all."""
    split: float = HALF
    """Share of `1h` in them."""
    seed: int = 0
    eval: dict[str, str] = field(default_factory=dict)
    """Evaluation sets that must not contain any training problem."""
    validation: str | None = None
    """File of validation problems that is to be written in verl's columns, too."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns in `train`, and in those of the other files that have them."""
    data_sources: list[str] = field(default_factory=list)
    """Data sources whose problems the slices keep; empty for all."""


def choose(ids: Sequence[str], labels: int | None, seed: int, split: float = HALF) -> dict[str, list[str]]:
    """Choose the problem ids of each slice. `all` is `1h`, with the share `split`, followed by `2h`.

    For the same problems and seed, fewer labels give a subset of more labels, and a smaller split of `1h` a subset.

    Raises:
        UserError: labels are fewer than two or more than the problems, or a part would be empty.
    """
    count = len(ids) if labels is None else labels
    if count < 2:
        raise UserError(
            "A slice would be empty, because labels are split into two halves.",
            key="labels",
            value=count,
            remedy="Use at least 2 labelled problems.",
        )
    if count > len(ids):
        raise UserError(
            f"The training file has only {len(ids)} problems.",
            key="labels",
            value=count,
            remedy=f"Ask for at most {len(ids)} labels, or null for all.",
        )
    shuffled = sorted(ids, key=lambda i: hashlib.sha256(f"{seed}\n{i}".encode()).digest())[:count]
    require_parts(count, split)
    first = first_part(count, split)
    return {"all": shuffled, "1h": shuffled[:first], "2h": shuffled[first:]}


def require_known(sources: Iterable[str], there: Iterable[str], what: str) -> None:
    """Raise UserError for a data source that nothing has.

    Args:
        there: the data sources of problems or prompts.
        what: names one of those.
    """
    known = set(there)
    for source in sources:
        if source not in known:
            raise UserError(
                f"No {what} has this data source.",
                key="data_source",
                value=source,
                remedy=f"The data sources there are {', '.join(sorted(known))}.",
            )


def restricted(
    slices: Mapping[str, Sequence[str]], source_of: Mapping[str, str], sources: Collection[str]
) -> dict[str, list[str]]:
    """Keep of every slice the problems of some data sources.

    Args:
        slices: slice -> problem ids, as `choose` returns them.
        source_of: problem id -> its data source.
        sources: the data sources to keep.

    Raises:
        UserError: no problem has one of the sources, or a slice would be empty.
    """
    require_known(sources, source_of.values(), "training problem")
    kept = {name: [i for i in ids if source_of[i] in sources] for name, ids in slices.items()}
    for name, ids in kept.items():
        if not ids:
            raise UserError(
                f"Slice {name} has no problem of these data sources.",
                key="data_source",
                value=", ".join(sources),
                remedy="Use more labels, or more problems of these sources.",
            )
    return kept


def slices_of(
    problems: Sequence[Problem], labels: int | None, seed: int, sources: Collection[str] = (), split: float = HALF
) -> dict[str, list[str]]:
    """Choose the problem ids of each slice; with `sources`, only those of problems from these data sources.

    Raises:
        UserError: as `choose` and `restricted`.
    """
    slices = choose([p.id for p in problems], labels, seed, split)
    return restricted(slices, {p.id: p.data_source for p in problems}, sources) if sources else slices


def slices_digest(slices: dict[str, list[str]]) -> str:
    """Compute the sha256 of the ids of every slice, in order."""
    return hashlib.sha256(json.dumps(slices, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def summary(slices: dict[str, list[str]], seed: int) -> dict[str, Any]:
    """Build the content of slices.json: the number of labels, the seed, the digest, and the ids of every slice."""
    return {"labels": len(slices["all"]), "seed": seed, "digest": slices_digest(slices), "slices": slices}


def without_answers(table: pa.Table) -> pa.Table:
    """Return the problems without any field that could hold an answer.

    Only verl's four columns are kept; ground_truth is empty text and extra_info has only the id. Metadata is dropped
    too, because pandas and datasets store descriptions of the original columns in it.
    """
    model, info = table["reward_model"].combine_chunks(), table["extra_info"].combine_chunks()
    empty = pa.array([""] * table.num_rows, pa.string())
    columns = {
        "prompt": table["prompt"],
        "data_source": table["data_source"],
        "reward_model": pa.StructArray.from_arrays([model.field("style"), empty], ["style", "ground_truth"]),
        "extra_info": pa.StructArray.from_arrays([info.field("index")], ["index"]),
    }
    return pa.table({c: columns[c] for c in COLUMNS})


def write_slices(options: Options) -> dict[str, list[str]]:
    """Write <slice>.parquet and <slice>-prompts.parquet for every slice, then slices.json; returns the ids.

    Raises:
        UserError: data or the number of labels are unusable, or evaluation problems are among the training problems.
    """
    columns = columns_of(options.columns)
    table = read_table(options.train, key="train", columns=columns)
    problems = problems_of(table, options.train, key="train")
    others: dict[str, Any] = {"columns": columns, "own_columns": True}
    check_disjoint(problems, {n: read_problems(f, key=f"eval.{n}", **others) for n, f in options.eval.items()})
    slices = slices_of(problems, options.labels, options.seed, options.data_sources, options.split)
    row = {p.id: i for i, p in enumerate(problems)}
    out = Path(options.out)
    if options.validation is not None:
        write_parquet(read_table(options.validation, key=VALIDATION, **others), out / f"{VALIDATION}.parquet")
    for name, ids in slices.items():
        rows = table.take([row[i] for i in ids]).combine_chunks()
        write_parquet(rows, out / f"{name}.parquet")
        write_parquet(without_answers(rows), out / f"{name}-prompts.parquet")
    write_json(summary(slices, options.seed), out / "slices.json")
    return slices


def main(options: Options) -> None:
    slices = write_slices(options)
    print("slices: " + ", ".join(f"{name} {len(ids)}" for name, ids in slices.items()))


if __name__ == "__main__":
    arguments.run(main, Options)
