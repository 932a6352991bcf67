"""Find damaged stages before anything reads them, and set them aside to be built again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import MATCHED, Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.digests import damage, unread_bytes
from verl_s2d.workflow.store.manifest import MANIFEST, inspect_manifest, is_built, read_manifest
from verl_s2d.workflow.store.saved_weights import export_problem
from verl_s2d.workflow.watch import early_stop

ASIDE = ".damaged"
"""Folder below `stages` for damaged stages; nothing reads it, `verl-s2d gc` empties it."""
_WORTH_TELLING = 2**30
_REPORTED = "result.json"
"""The output that only the report reads."""

Note = Callable[[str], None]
Files = tuple[str, ...] | None
"""Names of outputs; None: all of them."""


def verified_missing(plan: Plan, note: Note) -> list[Node]:
    """List the stages to build, after verifying every finished stage that one of them, or the report, reads.

    A damaged stage is set aside and built again: its digest covers all that determines its content, so stages that were
    built from the intact one stay valid.
    """
    while True:
        missing = plan.missing()
        damaged = False
        for node, files in _read_next(plan, missing):
            directory = plan.context.directory(node)
            # Another damaged file may have set the stage aside already.
            problems = _problems(node, directory, note, files) if directory.is_dir() else []
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
    """Verify the inputs of a stage. Files that were verified before are read again only if they have changed.

    Raises:
        StageFailed: an input is damaged; names the file.
    """
    for role, source in node.inputs.items():
        directory = plan.context.directory(source)
        problems = _problems(source, directory, note, _read_by(role))
        if problems:
            raise StageFailed(
                f"{node.name} did not start, because what it reads from {source.name} was damaged while the run was "
                f"working: {directory}/{problems[0]}. Run the same command again: {source.name} is then built again."
            )


def set_aside(path: Path) -> Path:
    """Move a stage's directory, or a part of it, to the folder of damaged stages; return the new path."""
    return move_into(ASIDE, path)


def move_into(name: str, path: Path) -> Path:
    """Rename a path below `stages` to stages/<name>/<old name>.<number>; return the new path."""
    stages = next(parent for parent in path.parents if parent.name == "stages")
    folder = stages / name
    folder.mkdir(exist_ok=True)
    called = "-".join(path.relative_to(stages).parts)
    target = next(t for number in count(1) if not (t := folder / f"{called}.{number}").exists())
    os.rename(path, target)
    return target


def discard_broken_remains(directory: Path, note: Note) -> None:
    """Clear a stage without a valid manifest before it resumes.

    A damaged manifest is removed. An incomplete model directory is set aside: it would be taken for the export.
    """
    problem = inspect_manifest(directory)[1]
    if problem is not None:
        note(f"{directory / MANIFEST} {problem}; the stage is verified again and the manifest written anew")
    # Also the manifest of another node.
    (directory / MANIFEST).unlink(missing_ok=True)
    model = directory / "model"
    if model.is_dir() and (problem := export_problem(model)) is not None:
        note(f"{model} is damaged ({problem}) and was moved to {set_aside(model)}")
        if not (directory / "checkpoints").is_dir():
            # The checkpoint that an alarm chose is lost with the model: the stage begins again.
            (directory / early_stop.STOPPED).unlink(missing_ok=True)


def _read_next(plan: Plan, missing: Iterable[Node]) -> Iterator[tuple[Node, Files]]:
    """Yield finished stages with the outputs that missing stages or the report read, each combination once."""
    read = [(source, _read_by(role)) for node in missing for role, source in node.inputs.items()]
    read += [(row.target, (_REPORTED,)) for row in plan.rows]
    seen = {(node.digest, files) for node in missing for files in (None, (), (_REPORTED,))}
    for node, files in read:
        if (node.digest, files) not in seen:
            seen.add((node.digest, files))
            yield node, files


def _read_by(role: str) -> Files:
    """Choose the outputs of an input that a stage reads: all; none for a budget, whose ledger is in the manifest."""
    return () if role == MATCHED else None


def _problems(node: Node, directory: Path, note: Note, files: Files) -> list[str]:
    if not is_built(node, directory):
        return [inspect_manifest(directory)[1] or f"{MANIFEST}: missing"]
    outputs = [o for o in read_manifest(directory)["outputs"] if files is None or o["name"] in files]
    if (size := unread_bytes(directory, outputs)) >= _WORTH_TELLING:
        note(f"verifying {size / 2**30:.1f} GiB of {node.name} before they are read")
    return damage(directory, outputs)
