"""Drop or cut prompts that are longer than the limit, in the training, evaluation and validation problems of a run.

    python -m verl_s2d.stages.prepare.limit_prompts out=DIR policy=drop|cut prompt_tokens=N train=FILE
        [eval.<name>=FILE ...] [validation=FILE] tokenizer.<role>=MODEL ...
        [revision.<role>=REVISION ...] [trusted.<role>=true ...] [chat_template.<name>=<value> ...]
        [columns.<name>=<column> ...]

Writes train.parquet, <name>.parquet for every evaluation set, validation/validation.parquet and, last, prompts.json
with the ids of the problems that were dropped or cut.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d import arguments
from verl_s2d.data.files import write_json, write_parquet
from verl_s2d.data.formats.column_names import columns_of
from verl_s2d.data.problems import problems_of, read_table
from verl_s2d.errors import UserError
from verl_s2d.platforms.template_date import DEFAULT, VARIABLE
from verl_s2d.stages.prepare.overlong import LIMITED_VALIDATION, SUMMARY, Limit, Messages, shortened
from verl_s2d.stages.prepare.render_cache import Renderer


@dataclass(frozen=True)
class Options:
    """Command line of this module."""

    out: str
    policy: str
    prompt_tokens: int
    train: str
    eval: dict[str, str] = field(default_factory=dict)
    validation: str | None = None
    tokenizer: dict[str, str] = field(default_factory=dict)
    """Role -> directory or hub id of a model whose chat template is used."""
    revision: dict[str, str] = field(default_factory=dict)
    """Role -> revision of a hub id."""
    trusted: dict[str, bool] = field(default_factory=dict)
    """Roles of models whose own code may run."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns in `train`, and in those of the other files that have them."""
    chat_template: dict[str, Any] = field(default_factory=dict)


def main(options: Options) -> None:
    """Write the files. Raises UserError for unusable data, equal problems after cutting, or a file without problems."""
    models = {
        role: Renderer(model, options.revision.get(role), options.trusted.get(role, False))
        for role, model in options.tokenizer.items()
    }
    limit = Limit(options.prompt_tokens, options.policy, options.chat_template, os.environ.get(VARIABLE, DEFAULT))
    files = {"train": options.train, **{f"eval.{name}": file for name, file in options.eval.items()}}
    if options.validation is not None:
        files["validation"] = options.validation
    columns = columns_of(options.columns)
    out, summary = Path(options.out), {}
    for key, file in files.items():
        table = read_table(file, key=key, columns=columns, own_columns=key != "train")
        problems = problems_of(table, file, key=key)
        changes = shortened([problem.messages for problem in problems], models, limit)
        kept = _changed(table, changes)
        if kept.num_rows == 0:
            raise UserError(
                "All prompts are longer than the limit.",
                key="data.prompt_tokens",
                value=options.prompt_tokens,
                remedy=f"Choose a larger limit, or other problems for {key}.",
            )
        problems_of(kept, file, key=key)
        write_parquet(
            kept, out / (LIMITED_VALIDATION if key == "validation" else f"{key.removeprefix('eval.')}.parquet")
        )
        summary[key] = {
            "problems": table.num_rows,
            "dropped": [problems[i].id for i, messages in changes.items() if messages is None],
            "cut": [problems[i].id for i, messages in changes.items() if messages is not None],
        }
    write_json({"policy": options.policy, "prompt_tokens": options.prompt_tokens, "files": summary}, out / SUMMARY)
    for key, counts in summary.items():
        print(f"{key}: {counts['problems']} prompts, {len(counts['dropped'])} dropped, {len(counts['cut'])} cut")


def _changed(table: pa.Table, changes: Mapping[int, Messages | None]) -> pa.Table:
    """Return the table with cut prompts, and without the rows that are dropped."""
    cut = {i: messages for i, messages in changes.items() if messages is not None}
    if cut:
        place, kind = table.column_names.index("prompt"), table.schema.field("prompt").type
        prompts: Sequence[Any] = [cut.get(i, old) for i, old in enumerate(table["prompt"].to_pylist())]
        table = table.set_column(place, "prompt", pa.array(prompts, kind))
    return table.take([i for i in range(table.num_rows) if changes.get(i, ()) is not None]).combine_chunks()


if __name__ == "__main__":
    arguments.run(main, Options)
