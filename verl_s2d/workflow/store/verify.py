"""Compare the files of a run directory with their recorded digests: `verl-s2d verify`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.workflow.store.checkpoints import completed_step
from verl_s2d.workflow.store.digests import damage, output_files
from verl_s2d.workflow.store.manifest import MANIFEST, inspect_manifest
from verl_s2d.workflow.store.run_directory import read_record
from verl_s2d.workflow.store.saved_weights import checkpoint_problems

STAGE_NAME = re.compile(r"([a-z_]+)-([0-9a-f]{12})")


@dataclass(frozen=True)
class Finding:
    """A finding about one file.

    Attributes:
        path: relative to the run directory.
        bad: damage; otherwise information.
    """

    path: str
    what: str
    bad: bool


@dataclass(frozen=True)
class Verification:
    """Counts of the stages and bytes read, and the findings."""

    run_dir: Path
    finished: int
    unfinished: int
    bytes_read: int
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return not any(finding.bad for finding in self.findings)

    def data(self) -> dict[str, Any]:
        """Return what --json prints, and what `report.command_text.verify_text` describes."""
        return {
            "run_dir": str(self.run_dir),
            "finished": self.finished,
            "unfinished": self.unfinished,
            "bytes": self.bytes_read,
            "ok": self.ok,
            "findings": [{"path": f.path, "what": f.what, "bad": f.bad} for f in self.findings],
        }


def verify_run(run_dir: Path) -> Verification:
    """Read every output of every stage and compare it with its manifest.

    The checkpoint that an unfinished stage would resume from is checked for completeness, not read.

    Raises:
        UserError: not the directory of a run.
    """
    if read_record(run_dir) is None and not (run_dir / "stages").is_dir():
        raise UserError(
            "This is not the directory of a run.",
            key="run",
            value=str(run_dir),
            remedy="Give a directory that `verl-s2d run` made (it has `stages` in it), or the recipe.",
        )
    findings = [] if read_record(run_dir) else [Finding("run.json", "missing or unreadable", True)]
    findings += _report(run_dir)
    finished = unfinished = size = 0
    for stage in stage_directories(run_dir):
        manifest, _ = inspect_manifest(stage)
        if manifest is None:
            unfinished += 1
        else:
            finished += 1
            size += sum(output["bytes"] for output in manifest["outputs"])
        findings += [
            Finding(f"stages/{stage.name}/{name}", what, bad) for name, what, bad in _stage(run_dir, stage, manifest)
        ]
    return Verification(run_dir, finished, unfinished, size, findings)


def stage_directories(run_dir: Path) -> list[Path]:
    """List the directories of stages, by name."""
    stages = run_dir / "stages"
    found = sorted(stages.iterdir()) if stages.is_dir() else []
    return [p for p in found if p.is_dir() and STAGE_NAME.fullmatch(p.name)]


def _stage(run_dir: Path, stage: Path, manifest: dict[str, Any] | None) -> Iterator[tuple[str, str, bool]]:
    """Yield (file, finding, whether it is damage) for one stage."""
    if manifest is None:
        problem = inspect_manifest(stage)[1]
        if problem is not None:
            yield MANIFEST, problem, True
        yield from _unfinished(stage)
        return
    if stage.name != f"{manifest['kind']}-{manifest['digest'][:12]}":
        yield MANIFEST, f"belongs to {manifest['kind']}-{manifest['digest'][:12]}", True
        return
    for problem in damage(stage, manifest["outputs"]):
        name, _, what = problem.partition(": ")
        yield name, what, True
    recorded = {output["name"] for output in manifest["outputs"]}
    for path in output_files(stage):
        name = path.relative_to(stage).as_posix()
        if name not in recorded:
            yield name, "not written by the stage", False
    for role, source in manifest["inputs"].items():
        label = f"{source['kind']}-{source['digest'][:12]}"
        if not (run_dir / "stages" / label).is_dir():
            yield MANIFEST, f"was built from {label} ({role}), which is gone", False


def _unfinished(stage: Path) -> Iterator[tuple[str, str, bool]]:
    saved = stage / "checkpoints"
    step = completed_step(saved)
    if step is None:
        yield "", "unfinished", False
        return
    yield "", f"unfinished, would go on from step {step}", False
    directory = saved / f"global_step_{step}"
    for problem in checkpoint_problems(directory):
        name, _, what = problem.partition(": ")
        yield f"checkpoints/{directory.name}/{name}", what, True


def _report(run_dir: Path) -> list[Finding]:
    try:
        json.loads((run_dir / "report.json").read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        return [Finding("report.json", "cannot be read; `verl-s2d report` writes it anew", True)]
    return []
