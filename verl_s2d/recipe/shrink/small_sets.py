"""Write the shortest problems of files, or of those that a recipe's data script writes.

    python small_sets.py --out DIR train=FILE eval.NAME=FILE ... [columns.NAME=COLUMN ...]
    python small_sets.py --out DIR prompts=["FILE", ...] [columns.NAME=COLUMN ...]
    python small_sets.py --out DIR script=FILE [args.KEY=VALUE ...]

A script whose arguments name sets that `verl-s2d prepare` publishes gets tiny files in their place, so nothing is
downloaded: their rows have the columns, repeated rows and an overlap with an evaluation set of the published ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from verl_s2d import arguments
from verl_s2d.arguments import plain_arguments

POOL = "prompts.parquet"
TRAIN_PROBLEMS, EVALUATION_PROBLEMS = 24, 4


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    out: str
    train: str | None = None
    prompts: list[str] | None = None
    """Files of prompts without labels."""
    eval: dict[str, str] = field(default_factory=dict)
    script: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)


def main(options: Options) -> None:
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.prompts is not None:
        cut_pool([Path(file) for file in options.prompts], out / POOL, options.columns)
        return
    if options.script is None:
        for name, file in {"train": options.train, **options.eval}.items():
            cut(Path(file), out / f"{name}.parquet", options.columns)
        return
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        given = dict(options.args) | published(options.args, Path(scratch))
        command = [sys.executable, options.script, "--out", str(whole), *plain_arguments(given)]
        # no limit: the script of a recipe; the run that waits for this stage stops it when it is silent.
        if code := subprocess.run(command).returncode:
            sys.exit(code)
        for file in sorted(whole.iterdir()):
            if file.name == POOL:
                cut_pool([file], out / POOL)
            elif file.suffix == ".parquet":
                cut(file, out / file.name)
            elif file.is_file():
                shutil.copy(file, out)


def published(args: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Return `sources.NAME` -> tiny file for the published sets that the arguments of `verl-s2d prepare` name."""
    from verl_s2d.data.sources import SOURCES
    from verl_s2d.recipe.shrink.digit_sums import write_sets

    names = [args.get("train", ""), *(name.strip() for name in args.get("eval", "").split(","))]
    if not set(names) <= SOURCES.keys():
        return {}
    files = write_sets(names[0], names[1:], directory, TRAIN_PROBLEMS, EVALUATION_PROBLEMS)
    return {key: str(file) for name, file in files.items() if (key := f"sources.{name}") not in args}


def cut(file: Path, to: Path, columns: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the shortest problems of a data file in verl's columns, in their order."""
    from verl_s2d.data.files import write_parquet
    from verl_s2d.data.formats.column_names import columns_of
    from verl_s2d.data.problems import read_table

    table = read_table(file, columns=columns_of(columns), own_columns=to.stem != "train")
    lengths = [sum(len(str(m["content"]).encode()) for m in messages) for messages in table["prompt"].to_pylist()]
    most = TRAIN_PROBLEMS if to.stem == "train" else EVALUATION_PROBLEMS
    write_parquet(table.take(sorted(sorted(range(len(lengths)), key=lengths.__getitem__)[:most])), to)


def cut_pool(files: Sequence[Path], to: Path, columns: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the shortest prompts without labels of some files in verl's columns."""
    from verl_s2d.data.files import write_parquet
    from verl_s2d.data.formats.column_names import columns_of
    from verl_s2d.data.unlabelled import pool_table, read_pool

    prompts = [prompt for file in files for prompt in read_pool(file, columns=columns_of(columns))]
    write_parquet(pool_table(sorted(prompts, key=lambda prompt: len(prompt.text))[:TRAIN_PROBLEMS]), to)


if __name__ == "__main__":
    arguments.run(main, Options)
