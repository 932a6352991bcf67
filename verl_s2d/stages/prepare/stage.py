"""Prepare models and data before training: run a recipe's own scripts and slice the labels."""

from __future__ import annotations

import sys
from pathlib import Path

from verl_s2d.arguments import plain_arguments
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Command, Context, Stage, require_export

TRAIN_FILE = "train.parquet"
VALIDATION = "validation"
SLICES = ("all", "1h", "2h")


def slice_sizes(labels: int) -> dict[str, int]:
    """Map slice name -> number of problems."""
    return {"all": labels, "1h": labels // 2, "2h": labels - labels // 2}


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


def columns_arguments(node: Node) -> dict[str, str]:
    """Build the arguments with the names of a data file's columns."""
    return {f"columns.{name}": value for name, value in node.settings.get("columns", {}).items()}


class Script(Stage):
    """Runs `python script --out DIR key=value ...`, which writes a model, or train.parquet and evaluation parquets."""

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


class Slices(Stage):
    """Slices labelled problems into all, first half and second half, each also without answers."""

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
        }
        if VALIDATION in node.externals:
            arguments[VALIDATION] = node.externals[VALIDATION].location
        return Command([sys.executable, "-m", "verl_s2d.data.slices", *plain_arguments(arguments)])

    def describe(self, node: Node) -> str:
        labels = node.settings["labels"]
        return f"{labels if labels is not None else 'all'} labelled problems, and two disjoint random halves of them"
