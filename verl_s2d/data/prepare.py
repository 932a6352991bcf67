"""Run `verl-s2d prepare`: published sets to train.parquet and evaluation parquets in verl's columns, for a recipe.

    verl-s2d prepare OUT [train=dapo-math-17k] [eval=math500,aime24,aime25] [template=boxed|dapo] [thinking=false]
        [seed=0] [contamination=report|remove] [ngram=10] [overlap=0.5] [sources.<name>=FILE or owner/name[@revision]]

OUT gets train.parquet, <eval name>.parquet, slices.json (the halves 1H and 2H, equal to the workflow's slices for the
same seed and all labels) and, last, prepared.json: settings, sources, counts, overlaps and digests. Their content does
not depend on the time, the machine or the order of set names. All input is checked before anything is written.

Thinking mode is one setting for all models of a run. It is stored in prepared.json as `chat_template: {enable_thinking:
...}`, the form of a recipe's `data.chat_template`, and in every row's extra_info.thinking. The workflow passes that
mapping to verl as data.apply_chat_template_kwargs in every stage, so that teacher and student read the same tokens. The
paper does not give the setting; the authors' repository chooses false for Qwen3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data import slices
from verl_s2d.data.contamination import NGRAM, SHARE, find_overlaps
from verl_s2d.data.duplicates import Duplicates, deduplicate
from verl_s2d.data.files import write_json, write_parquet
from verl_s2d.data.records import as_table, rows_digest
from verl_s2d.data.sources import SOURCES, Loaded, Record, load
from verl_s2d.data.templates import template
from verl_s2d.errors import UserError

MANIFEST = "prepared.json"
TRAIN = "train"


@dataclass(frozen=True)
class Options:
    """Command line of `verl-s2d prepare`."""

    out: str
    train: str = "dapo-math-17k"
    eval: str = "math500,aime24,aime25"
    """Names of evaluation sets, separated by commas."""
    template: str = "boxed"
    """Prompt template in training and evaluation: boxed or dapo. A source's own template is stripped."""
    thinking: bool = False
    """enable_thinking of the chat template, for teacher and student."""
    seed: int = 0
    """Seed of the halves: the seed of a row of the recipe."""
    contamination: str = "report"
    """report or remove training problems that overlap with evaluation problems. Reported ones stay in the training
    file; a recipe's own check (`problems.check_disjoint`) still refuses those that are equal up to white space."""
    ngram: int = NGRAM
    """Words per n-gram."""
    overlap: float = SHARE
    """Smallest fraction of an evaluation problem's n-grams in a training problem that makes an overlap."""
    sources: dict[str, str] = field(default_factory=dict)
    """Set name -> parquet file or hub id that replaces its published hub id."""

    @property
    def eval_names(self) -> list[str]:
        return sorted(name.strip() for name in self.eval.split(","))


def prepare(options: Options) -> dict[str, Any]:
    """Write the data and return the manifest. Equal settings and sources give equal bytes.

    Raises:
        UserError: a setting is invalid, a source is unusable, a half is empty, or `out` has data of other settings.
    """
    check_options(options)
    names = [options.train, *options.eval_names]
    loaded = {name: load(SOURCES[name], options.sources.get(name)) for name in names}
    deduplicated = {name: deduplicate(one.records, name) for name, one in loaded.items()}
    problems = {name: records for name, (records, _) in deduplicated.items()}
    evaluation = {name: problems[name] for name in options.eval_names}
    for name, records in evaluation.items():
        _require(len(records) > 0, f"eval: {name}", len(records), "The evaluation set would be empty")
    overlaps = find_overlaps(problems[options.train], evaluation, n=options.ngram, share=options.overlap)
    if options.contamination == "remove":
        contaminated = {o.train_id for o in overlaps}
        problems[options.train] = [r for r in problems[options.train] if r.id not in contaminated]
    left = len(problems[options.train])
    _require(left > 1, f"train: {options.train}", left, "A half of the training problems would be empty")

    halves = slices.choose([record.id for record in problems[options.train]], None, options.seed)
    tables = {name: _table(records, loaded[name], options) for name, records in problems.items()}
    overlapping = {name: {o.eval_id for o in overlaps if o.eval_set == name} for name in evaluation}
    overlapping[options.train] = {o.train_id for o in overlaps}
    sets = {n: _set(loaded[n], deduplicated[n][1], len(overlapping[n]), tables[n]) for n in names}
    manifest = {
        "settings": _settings(options),
        "chat_template": {"enable_thinking": options.thinking},
        "sets": sets,
        "halves": {
            "seed": options.seed,
            "1h": len(halves["1h"]),
            "2h": len(halves["2h"]),
            "digest": slices.slices_digest(halves),
        },
        "overlaps": [asdict(o) for o in overlaps],
    }
    out = Path(options.out).expanduser()
    _require_ours(out, manifest)
    for name, table in tables.items():
        write_parquet(table, out / f"{TRAIN if name == options.train else name}.parquet")
    write_json(slices.summary(halves, options.seed), out / "slices.json")
    write_json(manifest, out / MANIFEST)
    return manifest


def check_options(options: Options) -> None:
    """Raise UserError for an invalid setting, before anything is read."""
    for key, names in (("train", [options.train]), ("eval", options.eval_names), ("sources", list(options.sources))):
        for name in names:
            if name not in SOURCES:
                raise UserError("Unknown data set.", key=key, value=name, remedy=f"Known: {', '.join(SOURCES)}.")
    names = [options.train, *options.eval_names]
    if len(set(names)) != len(names):
        raise UserError(
            "A data set is named twice, or for both training and evaluation.",
            key="eval",
            value=options.eval,
            remedy="Name each once.",
        )
    unused = sorted(options.sources.keys() - set(names))
    if unused:
        raise UserError(
            "The source is of a set that is not in use.",
            key=f"sources.{unused[0]}",
            value=options.sources[unused[0]],
            remedy="Name the set in train or eval, or leave out its source.",
        )
    template(options.template)
    if options.contamination not in ("report", "remove"):
        raise UserError(
            "Not a choice.", key="contamination", value=options.contamination, remedy="Choose report or remove."
        )
    if options.ngram < 2:
        raise UserError("One word is no n-gram.", key="ngram", value=options.ngram, remedy="At least 2.")
    if not 0 < options.overlap <= 1:
        raise UserError("Not a share.", key="overlap", value=options.overlap, remedy="Above 0 and at most 1.")


def _table(records: Sequence[Record], loaded: Loaded, options: Options) -> pa.Table:
    return as_table(
        records,
        data_source=loaded.source.data_source,
        split="train" if loaded.source.name == options.train else "test",
        template=template(options.template),
        thinking=options.thinking,
    )


def _settings(options: Options) -> dict[str, Any]:
    """Return the settings that decide the result; the sources' locations do not, their contents do."""
    chosen = asdict(options) | {"eval": options.eval_names}
    return {name: value for name, value in chosen.items() if name not in ("out", "sources")}


def _set(loaded: Loaded, duplicates: Duplicates, overlapping: int, table: pa.Table) -> dict[str, Any]:
    counted = asdict(duplicates)
    return {
        "source": loaded.identity,
        "rows": counted.pop("rows"),
        "templates": loaded.templates,
        "duplicates": counted,
        "overlapping": overlapping,
        "problems": table.num_rows,
        "digest": rows_digest(table),
    }


def _require(met: bool, key: str, value: int, problem: str) -> None:
    if not met:
        raise UserError(
            f"{problem}.", key=key, value=value, remedy="Give more problems with distinct texts and clear answers."
        )


def _require_ours(out: Path, manifest: Mapping[str, Any]) -> None:
    """Raise UserError if `out` has other prepared data, which a run may be reading."""
    path = out / MANIFEST
    if not path.exists():
        return
    try:
        present = json.loads(path.read_text())
    except (OSError, ValueError):
        present = None
    if present != manifest:
        raise UserError(
            "The directory has data that were prepared differently.",
            key="out",
            value=str(out),
            remedy="Prepare into another directory, or remove this one.",
        )
