"""Prepare models and data before training: run a recipe's own scripts, limit prompts and slice the labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from verl_s2d.arguments import plain_arguments
from verl_s2d.data.label_split import HALF, first_part
from verl_s2d.platforms.template_date import DEFAULT
from verl_s2d.stages.prepare.overlong import DROP, LIMITED_VALIDATION, SUMMARY, Limit
from verl_s2d.stages.prepare.render_cache import Renderer
from verl_s2d.stages.shared.node_settings import template_environment
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.stage import (
    Command,
    Context,
    Stage,
    model_location,
    require_export,
    trusts_remote_code,
)

TRAIN_FILE, POOL_FILE = "train.parquet", "prompts.parquet"
VALIDATION, TOKENIZER = "validation", "tokenizer"
"""Roles of inputs; the second is followed by the role of a model."""
SLICES = ("all", "1h", "2h")
SOURCES = "data_sources"
"""Setting of slices that keep the problems of some data sources only."""
SPLIT = "split"
"""Setting of slices whose `1h` is not a half."""
POOL = "prompts"
"""Slice of the prompts without labels; `all+prompts` has those of a slice of the labelled problems, too."""


def slice_sizes(labels: int, split: float = HALF) -> dict[str, int]:
    """Map slice name -> number of problems."""
    first = first_part(labels, split)
    return {"all": labels, "1h": first, "2h": labels - first}


def parts_of(slice_name: str) -> tuple[str, tuple[str, ...]]:
    """Split `all@math,code` into a slice and the data sources of its problems; none for problems of all sources."""
    part, _, sources = slice_name.partition("@")
    return part, tuple(sorted(filter(None, sources.split(","))))


def labelled_part(part: str) -> str | None:
    """Return the slice of labelled problems in `all+prompts`, none in `prompts`; any other slice is one."""
    labelled, _, last = part.rpartition("+")
    return (labelled or None) if last == POOL else part


def slices_settings(node: Node) -> dict[str, Any]:
    """Return the arguments of `data.slices.slices_of` that choose the problems of slices."""
    s = node.settings
    return {"labels": s["labels"], "seed": s["seed"], "sources": s.get(SOURCES, ()), "split": s.get(SPLIT, HALF)}


def prompts_file(node: Node, context: Context) -> Path:
    """Locate the prompts, without answers, of the slice that a node reads."""
    slices = node.inputs["slices"]
    return context.directory(slices) / slices.stage.prompts_file(node.settings["slice"])


def slice_of(node: Node) -> str:
    """Name the slice that a node reads as `parts_of` reads it."""
    sources = node.inputs["slices"].settings.get(SOURCES)
    return f"{node.settings['slice']}@{','.join(sources)}" if sources else node.settings["slice"]


def evaluation_files(node: Node, role: str, context: Context) -> dict[str, Path]:
    """Map name -> parquet for the evaluation sets that a node reads.

    These are the files named in the recipe, or every parquet that the data script in `role` wrote beside train.parquet,
    named by its stem; empty until that script has run.
    """
    prefix = "eval."
    named = {r[len(prefix) :]: Path(e.location) for r, e in node.externals.items() if r.startswith(prefix)}
    if named or role not in node.inputs:
        return named
    directory = context.directory(node.inputs[role])
    return {p.stem: p for p in sorted(directory.glob("*.parquet")) if p.name != TRAIN_FILE}


def renderers(node: Node, context: Context) -> dict[str, Renderer]:
    """Return the models whose chat templates limit a node's prompts, by role."""
    prefix, found = f"{TOKENIZER}.", {}
    for role in (role for role in node.sources if role.startswith(prefix)):
        revision = node.externals[role].revision if role in node.externals else None
        found[role.removeprefix(prefix)] = Renderer(
            model_location(node, role, context), revision, trusts_remote_code(node, role)
        )
    return found


def limit_of(node: Node) -> Limit:
    """Return the limit of a node's prompts and the policy."""
    s = node.settings
    return Limit(s["prompt_tokens"], s["policy"], s["chat_template"], s.get("template_date", DEFAULT))


def limit_arguments(node: Node, context: Context) -> dict[str, Any]:
    """Build the arguments with the limit of prompts and the models whose chat templates count."""
    models = renderers(node, context)
    return {
        "policy": node.settings["policy"],
        "prompt_tokens": node.settings["prompt_tokens"],
        **{f"tokenizer.{role}": model.model for role, model in models.items()},
        **{f"revision.{role}": model.revision for role, model in models.items() if model.revision},
        **{f"trusted.{role}": True for role, model in models.items() if model.trust_remote_code},
        **{f"chat_template.{name}": value for name, value in node.settings["chat_template"].items()},
    }


def columns_arguments(node: Node) -> dict[str, str]:
    """Build the arguments with the names of a data file's columns."""
    return {f"columns.{name}": value for name, value in node.settings.get("columns", {}).items()}


def validation_file(node: Node, context: Context) -> str:
    """Locate the validation problems that a node reads: the recipe's file, or what a stage has made of it."""
    if VALIDATION in node.inputs:
        return str(context.directory(node.inputs[VALIDATION]) / LIMITED_VALIDATION)
    slices = node.inputs.get("slices")
    if slices is not None and VALIDATION in slices.externals:
        return str(context.directory(slices) / f"{VALIDATION}.parquet")
    return node.externals[VALIDATION].location


class Script(Stage):
    """Runs `python script --out DIR key=value ...`, which writes a model, train.parquet and evaluation parquets, or
    prompts.parquet."""

    kind = "script"
    prepares = True

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        argv = [sys.executable, node.externals["script"].location, "--out", str(context.directory(node))]
        return Command(argv + plain_arguments(node.settings["args"]))

    def finalize(self, node: Node, directory: Path) -> None:
        log = directory / "log.txt"
        if node.settings["makes"] == "model":
            require_export(node, directory)
            return
        if node.settings["makes"] == POOL:
            if not (directory / POOL_FILE).is_file():
                raise StageFailed(f"{node.name} ended without writing {POOL_FILE}.", log=log)
            return
        if not (directory / TRAIN_FILE).is_file():
            raise StageFailed(f"{node.name} ended without writing {TRAIN_FILE}.", log=log)
        if not any(p.name != TRAIN_FILE for p in directory.glob("*.parquet")):
            raise StageFailed(f"{node.name} wrote no evaluation parquet beside {TRAIN_FILE}.", log=log)

    def model_directory(self, directory: Path) -> Path:
        return directory

    def makes_model(self, node: Node) -> bool:
        return node.settings["makes"] == "model"

    def describe(self, node: Node) -> str:
        return f"the recipe's script {Path(node.externals['script'].location).name} makes the {node.settings['makes']}"


class LimitedPrompts(Stage):
    """Drops or cuts prompts that are longer than the limit with the chat template of any model of the recipe."""

    kind = "prompts"
    prepares = True
    required_files = (TRAIN_FILE, SUMMARY)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        files = {"train": node.externals["train"].location} if "train" in node.externals else {}
        if "source" in node.inputs:
            files["train"] = str(context.directory(node.inputs["source"]) / TRAIN_FILE)
        files |= {f"eval.{name}": str(path) for name, path in evaluation_files(node, "source", context).items()}
        if VALIDATION in node.externals:
            files[VALIDATION] = node.externals[VALIDATION].location
        arguments = {"out": str(context.directory(node)), **limit_arguments(node, context), **files}
        arguments |= columns_arguments(node)
        argv = [sys.executable, "-m", "verl_s2d.stages.prepare.limit_prompts", *plain_arguments(arguments)]
        return Command(argv, template_environment(node))

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """Count the prompts that were dropped or cut, in all files."""
        files = json.loads((directory / SUMMARY).read_text())["files"].values()
        overlong = sum(len(counts["dropped"]) + len(counts["cut"]) for counts in files)
        return empty_ledger(seconds) | {"overlong_prompts": overlong}

    def describe(self, node: Node) -> str:
        verb = "drops" if node.settings["policy"] == DROP else "cuts"
        return f"{verb} prompts of more than {node.settings['prompt_tokens']} tokens"


class Slices(Stage):
    """Slices labelled problems into all and two parts, halves unless there is a split, each also without answers."""

    kind = "slices"
    prepares = True
    required_files = (*(f"{s}{suffix}.parquet" for s in SLICES for suffix in ("", "-prompts")), "slices.json")

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        train = (
            node.externals["train"].location
            if "train" in node.externals
            else str(context.directory(node.inputs["source"]) / TRAIN_FILE)
        )
        arguments = {
            "train": train,
            "out": str(context.directory(node)),
            "labels": node.settings["labels"],
            "seed": node.settings["seed"],
            **columns_arguments(node),
            **{name: node.settings[name] for name in (SOURCES, SPLIT) if name in node.settings},
        }
        if VALIDATION in node.externals:
            arguments[VALIDATION] = node.externals[VALIDATION].location
        return Command([sys.executable, "-m", "verl_s2d.data.slices", *plain_arguments(arguments)])

    def prompts_file(self, slice_name: str) -> str:
        """Name the file with the prompts of a slice without answers."""
        return f"{slice_name}-prompts.parquet"

    def describe(self, node: Node) -> str:
        labels, sources, split = node.settings["labels"], node.settings.get(SOURCES), node.settings.get(SPLIT)
        parts = "two disjoint random halves of them" if split is None else f"a random {100 * split:g} % and the rest"
        described = f"{labels if labels is not None else 'all'} labelled problems, and {parts}"
        return f"{described}: those from {', '.join(sources)}" if sources else described
