"""Write a pool of prompts without labels in verl's columns.

    python -m verl_s2d.stages.prepare.write_pool prompts=["FILE", ...] out=DIR [labelled=FILE]
        [data_sources=["<data source>", ...]] [columns.<name>=<column> ...]
        [policy=drop|cut] [prompt_tokens=N] [tokenizer.<role>=MODEL ...] [revision.<role>=REVISION ...]
        [trusted.<role>=true ...] [chat_template.<name>=<value> ...]

Writes prompts.parquet, first the prompts of `labelled` and then those of the pool, and, last, pool.json with their
numbers and the ids of the prompts that were dropped or cut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_s2d import arguments
from verl_s2d.data.files import write_json, write_parquet
from verl_s2d.data.formats.column_names import columns_of
from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.data.problems import read_problems
from verl_s2d.data.unlabelled import of_sources, pool_table, read_pool, require_distinct
from verl_s2d.errors import UserError
from verl_s2d.platforms.template_date import DEFAULT, VARIABLE
from verl_s2d.stages.prepare.overlong import REFUSE, Limit, limited, shortened
from verl_s2d.stages.prepare.render_cache import Renderer


@dataclass(frozen=True)
class Options:
    """Command line of this module."""

    prompts: list[str]
    """Files of the pool."""
    out: str
    labelled: str | None = None
    """File of labelled problems whose prompts come first, in verl's columns."""
    data_sources: list[str] = field(default_factory=list)
    """Data sources whose prompts are kept; empty for all."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns, read where a file has the one of the question."""
    policy: str = REFUSE
    prompt_tokens: int | None = None
    tokenizer: dict[str, str] = field(default_factory=dict)
    revision: dict[str, str] = field(default_factory=dict)
    trusted: dict[str, bool] = field(default_factory=dict)
    chat_template: dict[str, Any] = field(default_factory=dict)
    """policy ... chat_template: as of limit_prompts.py."""


def main(options: Options) -> None:
    """Write the files. Raises UserError for unusable, answered or repeated prompts, or if none is left."""
    columns = columns_of(options.columns)
    pool = [prompt for file in options.prompts for prompt in read_pool(file, columns=columns)]
    models = {
        role: Renderer(model, options.revision.get(role), options.trusted.get(role, False))
        for role, model in options.tokenizer.items()
    }
    limit = Limit(options.prompt_tokens or 0, options.policy, options.chat_template, os.environ.get(VARIABLE, DEFAULT))
    changes = shortened([prompt.messages for prompt in pool], models, limit)
    kept = of_sources(limited(pool, changes), options.data_sources)
    if not kept:
        raise UserError(
            "All prompts without labels are longer than the limit.",
            key="data.prompt_tokens",
            value=options.prompt_tokens,
            remedy=f"Choose a larger limit, or other prompts for {PROMPTS}.",
        )
    labelled = read_problems(options.labelled, key="labelled") if options.labelled else []
    require_distinct(kept, labelled)
    out = Path(options.out)
    write_parquet(pool_table([*labelled, *kept]), out / "prompts.parquet")
    counts = {
        "labelled": len(labelled),
        "prompts": len(kept),
        "dropped": [pool[place].id for place, messages in changes.items() if messages is None],
        "cut": [pool[place].id for place, messages in changes.items() if messages is not None],
    }
    write_json(counts, out / "pool.json")
    print(f"pool: {len(kept)} prompts without labels, {len(labelled)} of labelled problems")


if __name__ == "__main__":
    arguments.run(main, Options)
