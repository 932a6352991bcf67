"""What is damaged is found before anything reads it, set aside, and built again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

from verl_s2d.workflow.digests import damage, unread_bytes
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hf_export import export_problem
from verl_s2d.workflow.manifest import MANIFEST, inspect_manifest, is_built, read_manifest
from verl_s2d.workflow.planning import Plan

ASIDE = ".damaged"
"""Folder below `stages` for what was set aside; nothing reads it, `verl-s2d gc` empties it."""
_WORTH_TELLING = 2**30
_REPORTED = "result.json"
"""The one output that no stage reads and the report does."""

Note = Callable[[str], None]


def verified_missing(plan: Plan, note: Note) -> list[Node]:
    """The stages to build, after every finished stage that one of them (or the report) reads has been verified.

    A stage that is damaged is set aside and is then among those to build: its directory is addressed by all that
    determines its content, so what was built from the undamaged one stays valid.
    """
    while True:
        missing = plan.missing()
        damaged = False
        for node, only in _read_next(plan, missing):
            directory = plan.context.directory(node)
            problems = _problems(node, directory, note, only)
            if problems:
                damaged = True
                aside = set_aside(directory)
                note(
                    f"{node.name} is damaged and will be built again: {'; '.join(problems)} (in {directory}, "
                    f"now {aside}; to avoid building it, stop and put back a copy of that directory)"
                )
        if not damaged:
            return missing


def require_whole(node: Node, plan: Plan, note: Note) -> None:
    """Raises StageFailed naming the damaged file if a stage would read one. Files verified before are not read again
    unless they have been touched since."""
    for source in node.inputs.values():
        directory = plan.context.directory(source)
        problems = _problems(source, directory, note)
        if problems:
            raise StageFailed(
                f"{node.name} did not start, because what it reads from {source.name} was damaged while the run was "
                f"working: {directory}/{problems[0]}. Run the same command again: {source.name} is then built again."
            )


def set_aside(directory: Path) -> Path:
    """Move a stage's directory, or a part of it, out of the way; returns where to."""
    stages = next(parent for parent in directory.parents if parent.name == "stages")
    folder = stages / ASIDE
    folder.mkdir(exist_ok=True)
    name = "-".join(directory.relative_to(stages).parts)
    aside = next(path for number in count(1) if not (path := folder / f"{name}.{number}").exists())
    os.rename(directory, aside)
    return aside


def discard_broken_remains(directory: Path, note: Note) -> None:
    """Before a stage without a valid manifest goes on: a damaged manifest is told and removed, and a model directory
    that is not a whole model is set aside, because it would be taken for the stage's export."""
    problem = inspect_manifest(directory)[1]
    if problem is not None:
        note(f"{directory / MANIFEST} {problem}; the stage is verified again and the manifest written anew")
    # Also one that belongs to another node.
    (directory / MANIFEST).unlink(missing_ok=True)
    model = directory / "model"
    if model.is_dir() and (problem := export_problem(model)) is not None:
        note(f"{model} is damaged ({problem}) and was moved to {set_aside(model)}")


def _read_next(plan: Plan, missing: Iterable[Node]) -> Iterator[tuple[Node, str | None]]:
    """Finished stages that missing ones read, each once, and those whose result.json the report will read."""
    missing = list(missing)
    waiting = {node.digest for node in missing}
    seen = set()
    for source in (source for node in missing for source in node.inputs.values()):
        if source.digest not in waiting | seen:
            seen.add(source.digest)
            yield source, None
    for row in plan.rows:
        if row.target.digest not in waiting | seen:
            seen.add(row.target.digest)
            yield row.target, _REPORTED


def _problems(node: Node, directory: Path, note: Note, only: str | None = None) -> list[str]:
    if not is_built(node, directory):
        return [inspect_manifest(directory)[1] or f"{MANIFEST}: missing"]
    outputs = [o for o in read_manifest(directory)["outputs"] if only in (None, o["name"])]
    if (size := unread_bytes(directory, outputs)) >= _WORTH_TELLING:
        note(f"verifying {size / 2**30:.1f} GiB of {node.name} before they are read")
    return damage(directory, outputs)
