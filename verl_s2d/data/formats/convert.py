r"""Run `verl-s2d convert`: a data file as people have it to train.parquet, and held-out problems, in verl's columns.

    verl-s2d convert FILE OUT [question=COLUMN] [answer=COLUMN] [after=####] [id=COLUMN] [data_source=NAME]
        [template=boxed|dapo|none] [holdout=0] [seed=0] [eval.<name>=FILE ...] [prompts=FILE]

FILE is parquet, jsonl, json or csv. Known columns are found by themselves (verl_columns.py). Left out and counted are
rows without a question or an answer, repeated problems, problems whose copies disagree about the answer, and training
problems that are in an evaluation set. `holdout` problems become OUT/held_out.parquet, `eval.<name>`
OUT/<name>.parquet, and the questions of `prompts` OUT/prompts.parquet: without answers, and without those of the other
sets. The same file and settings give the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data.files import write_parquet
from verl_s2d.data.formats.column_names import Columns, columns_of
from verl_s2d.data.formats.data_files import read_any
from verl_s2d.data.formats.verl_columns import as_verl, has_columns, needed
from verl_s2d.data.problems import Problem, as_problems
from verl_s2d.data.slices import choose
from verl_s2d.data.unlabelled import pool_table, read_pool
from verl_s2d.errors import UserError

HELD_OUT, TRAIN, POOL = "held_out", "train", "prompts"


@dataclass(frozen=True)
class Options:
    """Command line of `verl-s2d convert`."""

    file: str
    out: str
    question: str | None = None
    answer: str | None = None
    after: str | None = None
    id: str | None = None
    data_source: str | None = None
    template: str | None = None
    """question ... template: as in `data.columns` of a recipe (data/formats/column_names.py)."""
    holdout: int = 0
    """Number of problems to evaluate on, drawn by `seed` from the problems' ids."""
    seed: int = 0
    eval: dict[str, str] = field(default_factory=dict)
    """Evaluation sets: name -> file with the same columns or known ones."""
    prompts: str | None = None
    """File whose questions are used without labels (data.prompts of a recipe); it may have answers."""

    @property
    def columns(self) -> Columns | None:
        """Return the names of columns that are given."""
        names = {name: value for name in Columns.model_fields if (value := getattr(self, name)) is not None}
        return columns_of(names)


@dataclass
class Converted:
    """One set of problems, and the number of rows that were left out."""

    table: pa.Table
    problems: list[Problem]
    rows: int
    unusable: int = 0
    """Rows without a question or an answer."""
    repeated: int = 0
    disputed: int = 0
    """Rows of problems whose copies disagree about the answer."""
    evaluated: int = 0
    """Training problems, or prompts without labels, that are in an evaluation set."""
    labelled: int = 0
    """Prompts without labels that are those of training problems."""

    def select(self, kept: Sequence[int]) -> None:
        self.table, self.problems = self.table.take(pa.array(kept, pa.int64())), [self.problems[i] for i in kept]

    def text(self) -> str:
        """Describe what was kept and what was left out."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("table", "problems", "rows")}
        out = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{len(self.problems)} problems" + (f" ({self.rows} rows; left out: {out})" if out else "")


def convert(options: Options) -> dict[str, Converted]:
    """Write the files; returns name -> set. All input is checked before anything is written.

    Raises:
        UserError: a file is unusable, a set would be empty, or OUT has a training file.
    """
    out = Path(options.out).expanduser()
    for name in (TRAIN, *([HELD_OUT] if options.holdout else []), *([POOL] if options.prompts else [])):
        if name in options.eval:
            remedy = "Choose another name."
            raise UserError("This name is taken.", key=f"eval.{name}", value=options.eval[name], remedy=remedy)
    if (out / f"{TRAIN}.parquet").exists():
        raise UserError(
            "The directory has a training file.",
            key="out",
            value=str(out),
            remedy="Convert into another directory, or remove this one: a run may read it.",
        )
    sets = {TRAIN: _read(options.file, "file", options.columns)}
    for name, file in options.eval.items():
        sets[name] = _read(file, f"eval.{name}", options.columns, own_columns=True)
    _leave_out_evaluated(sets)
    if options.holdout:
        _hold_out(sets, options)
    if options.prompts:
        sets[POOL] = _without_labels(options, sets)
    for name, made in sets.items():
        if not made.problems:
            raise UserError("No problem is left.", key=name, value=made.text(), remedy="Check the file's columns.")
    for name, made in sets.items():
        write_parquet(made.table, out / f"{name}.parquet")
    return sets


def text_of(sets: Mapping[str, Converted], out: str | Path) -> str:
    """Describe the files, with one problem to look at."""
    lines = [f"{Path(out) / name}.parquet: {made.text()}" for name, made in sets.items()]
    shown = sets[TRAIN].problems[0]
    lines += ["the first problem:", *(f"  {m['role']}: {m['content']}" for m in shown.messages)]
    return "\n".join([*lines, f"  its answer: {shown.ground_truth}   (data_source {shown.data_source})"])


def _read(file: str, key: str, columns: Columns | None, *, own_columns: bool = False) -> Converted:
    path = Path(file).expanduser()
    table = read_any(path, key=key, select=lambda schema: needed(schema, columns))
    if own_columns and columns is not None and not has_columns(table.schema, columns):
        columns = Columns(template=columns.template)
    table = as_verl(table, columns, key=key, path=path, strict=False)
    rows = table.to_pylist()
    whole = [i for i, row in enumerate(rows) if _is_whole(row)]
    made = Converted(table.take(pa.array(whole, pa.int64())), as_problems([rows[i] for i in whole]), len(rows))
    made.unusable = len(rows) - len(whole)
    answers: dict[str, dict[str, int]] = {}
    for i, problem in enumerate(made.problems):
        answers.setdefault(problem.text, {}).setdefault(str(problem.ground_truth), i)
    kept = sorted(next(iter(found.values())) for found in answers.values() if len(found) == 1)
    made.disputed = sum(len(answers[problem.text]) > 1 for problem in made.problems)
    made.repeated = len(made.problems) - made.disputed - len(kept)
    made.select(kept)
    return made


def _without_labels(options: Options, sets: Mapping[str, Converted]) -> Converted:
    path = Path(options.prompts).expanduser()
    pool = read_pool(path, key=POOL, columns=options.columns, drop_answers=True)
    first = {problem.text: number for number, problem in reversed([*enumerate(pool)])}
    labelled = {problem.text for problem in sets[TRAIN].problems}
    evaluated = {problem.text for name, made in sets.items() if name != TRAIN for problem in made.problems}
    kept = [pool[i] for text, i in sorted(first.items(), key=itemgetter(1)) if text not in labelled | evaluated]
    return Converted(
        pool_table(kept),
        kept,
        rows=len(pool),
        repeated=len(pool) - len(first),
        labelled=len(first.keys() & labelled),
        evaluated=len(first.keys() & evaluated),
    )


def _is_whole(row: Mapping[str, Any]) -> bool:
    messages, truth = row["prompt"], (row["reward_model"] or {}).get("ground_truth")
    asked = isinstance(messages, list) and messages and all(m["content"] for m in messages)
    return bool(asked) and truth is not None and truth != "" and truth == truth and row["data_source"] is not None


def _leave_out_evaluated(sets: Mapping[str, Converted]) -> None:
    train = sets[TRAIN]
    held = {problem.text for name, made in sets.items() if name != TRAIN for problem in made.problems}
    kept = [i for i, problem in enumerate(train.problems) if problem.text not in held]
    train.evaluated = len(train.problems) - len(kept)
    train.select(kept)


def _hold_out(sets: dict[str, Converted], options: Options) -> None:
    train = sets[TRAIN]
    count = len(train.problems)
    if not 0 < options.holdout <= count - 2:
        raise UserError(
            f"Of {count} problems at least 2 are trained on.",
            key="holdout",
            value=options.holdout,
            remedy=f"From 0 to {max(0, count - 2)}.",
        )
    drawn = set(choose([p.id for p in train.problems], None, options.seed)["all"][: options.holdout])
    places = [i for i, problem in enumerate(train.problems) if problem.id in drawn]
    held = Converted(train.table, train.problems, options.holdout)
    held.select(places)
    sets[HELD_OUT] = held
    train.select([i for i in range(count) if i not in set(places)])
