"""Find and remove what no kept row needs: `verl-s2d gc`.

Kept are all stages that the rows of a plan are built from, finished or not, and the finished stages in `results`.
Removal begins with a rename into `stages/.removed`, so that a kill leaves no partial stage. Only files below `stages`
are touched, and links are not followed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.process import marked_processes
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.store.manifest import is_built, read_manifest
from verl_s2d.workflow.store.repair import ASIDE, move_into
from verl_s2d.workflow.store.run_directory import is_locked, opened, read_record
from verl_s2d.workflow.store.saved_weights import checkpoint_problems
from verl_s2d.workflow.store.verify import stage_directories

REMOVED = ".removed"
_STEP = re.compile(r"global_step_(\d+)")


@dataclass(frozen=True)
class Waste:
    """A file or directory that can be removed.

    Attributes:
        bytes: size of all files below it; 0 for a link, whose target stays.
        blocked: reason why it stays in place; empty when it can be removed.
    """

    path: Path
    why: str
    bytes: int
    blocked: str = ""


@dataclass(frozen=True)
class Collection:
    """The waste in a run directory, removed or not."""

    plan: Plan
    waste: list[Waste]
    deleted: bool

    @property
    def bytes(self) -> int:
        return sum(waste.bytes for waste in self.waste if not waste.blocked)

    def data(self) -> dict[str, Any]:
        """Return what --json prints, and what `report.command_text.gc_text` describes."""
        context = self.plan.context
        entries = [
            {"path": self._name(w), "why": w.why, "bytes": w.bytes, "blocked": w.blocked or None} for w in self.waste
        ]
        kept = {"rows": list(dict.fromkeys(r.name for r in self.plan.rows)), "seeds": self._seeds()}
        return {
            "run_dir": str(context.run_dir),
            "running": is_locked(context.run_dir),
            "built": any(is_built(node, context.directory(node)) for node in self.plan.order),
            "kept": kept,
            "waste": entries,
            "bytes": self.bytes,
            "deleted": self.deleted,
        }

    def _name(self, waste: Waste) -> str:
        return waste.path.relative_to(self.plan.context.run_dir).as_posix()

    def _seeds(self) -> list[int]:
        return sorted({row.seed for row in self.plan.rows})


def collect(plan: Plan, *, delete: bool, results: Container[str] = ()) -> Collection:
    """Find everything that the plan's rows do not need; with `delete` remove it under the run directory's lock.

    Args:
        results: labels of further stages to keep if they are finished; their inputs may go.

    Raises:
        UserError: not the directory of a run of this recipe; with `delete`, also while a run or processes of a killed
            run work in it.
    """
    run_dir = plan.context.run_dir
    if read_record(run_dir) is None:
        raise UserError(
            "This is not the directory of a run.",
            key="--run-dir",
            value=str(run_dir),
            remedy="Give a directory that `verl-s2d run` made.",
        )
    if not delete:
        return Collection(plan, find_waste(plan, results), False)
    with opened(run_dir, plan.recipe.name) as run_id:
        if alive := marked_processes(run_id):
            raise UserError(
                "Processes of a run that was killed still work in this directory.",
                key="--run-dir",
                value=str(run_dir),
                remedy=f"`verl-s2d run` ends them, or end them yourself: {', '.join(map(str, alive[:10]))}.",
            )
        waste = find_waste(plan, results)
        for item in waste:
            if not item.blocked:
                _remove(item.path)
        for folder in (ASIDE, REMOVED):
            if (path := run_dir / "stages" / folder).is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
        return Collection(plan, waste, True)


def find_waste(plan: Plan, results: Container[str] = ()) -> list[Waste]:
    """List everything that can be removed, by path; unfinished stages in `results` included."""
    stages = plan.context.run_dir / "stages"
    needed = {node.label: node for node in plan.order}
    found = [
        _waste(path, why)
        for folder, why in _FOLDERS.items()
        if (stages / folder).is_dir() and not (stages / folder).is_symlink()
        for path in (stages / folder).iterdir()
    ]
    for directory in stage_directories(plan.context.run_dir):
        if directory.name in needed:
            found += () if directory.is_symlink() else _inside(needed[directory.name], directory)
        elif not (manifest := read_manifest(directory)) or directory.name not in results:
            name = f"{manifest['name']}: " if manifest else "unfinished: "
            link = " (a link: what it points to stays)" if directory.is_symlink() else ""
            found.append(_waste(directory, f"{name}no kept row needs it{link}"))
    return sorted(found, key=lambda waste: waste.path)


_FOLDERS = {ASIDE: "was damaged and has been set aside", REMOVED: "left over from an interrupted removal"}


def _inside(node: Node, directory: Path) -> Iterator[Waste]:
    """List waste inside a kept stage: checkpoints that no attempt will resume from, and unfinished files."""
    for path in directory.glob(".*.tmp"):
        yield _waste(path, "was never finished")
    saved = directory / "checkpoints"
    if saved.is_symlink() or not saved.is_dir():
        return
    if is_built(node, directory):
        yield _waste(saved, f"{node.name}: step checkpoints of a finished stage")
        return
    for path in saved.glob(f"{checkpoints.DAMAGED}*"):
        yield _waste(path, f"{node.name}: a step checkpoint that is damaged")
    newest = checkpoints.completed_step(saved)
    # A stage that an alarm may stop hands over one of its earlier checkpoints.
    all_count = "stopped_by" in node.settings
    others = [
        path
        for path in saved.iterdir()
        if (m := _STEP.fullmatch(path.name))
        and newest is not None
        and (int(m[1]) > newest or (int(m[1]) < newest and not all_count))
    ]
    # A damaged newest checkpoint falls back on the others, so it is checked first.
    if others and not checkpoint_problems(saved / f"global_step_{newest}"):
        for path in others:
            yield _waste(path, f"{node.name}: would go on from step {newest}")


def _waste(path: Path, why: str) -> Waste:
    if path.is_symlink() or not path.is_dir():
        return Waste(path, why, 0 if path.is_symlink() else path.lstat().st_size)
    size = 0
    for folder, _, files in os.walk(path):
        if os.path.ismount(folder):
            return Waste(path, why, 0, blocked=f"another file system is mounted at {folder}")
        size += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
    return Waste(path, why, size)


def _remove(path: Path) -> None:
    if path.parent.name != REMOVED:
        path = move_into(REMOVED, path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
