"""Plan and run the tiny project of `project.py` in a test."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.support.workflow.project import FakeStages, SimulatedStages, write_project
from verl_s2d.checks import check_plan
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.store.manifest import MANIFEST


class Lines:
    """A Progress that keeps what it was told."""

    def __init__(self):
        self.notes, self.started, self.ended = [], [], []

    def note(self, text):
        self.notes.append(text)

    def stage_started(self, node, index, count, total_steps, attempt):
        self.started.append((node.name, attempt))

    def stage_step(self, node, step, figures=()):
        pass

    def stage_ended(self, node, seconds, outcome):
        self.ended.append((node.name, outcome))


def project(tmp_path, rows=("half-split",), **changes):
    recipe = load_recipe(write_project(tmp_path, **changes))
    return make_plan(recipe, run_dir=tmp_path / "run", rows=list(rows))


def build(plan, launcher=None, progress=None, **more):
    return run_plan(
        plan, progress or Lines(), launcher=launcher or FakeStages(), check=lambda final: check_plan(plan), **more
    )


def simulate(plan, launcher=None, progress=None):
    """Build with stages that do their work in this process."""
    return build(plan, launcher or SimulatedStages(), progress)


def directory(plan, name):
    return next(plan.context.directory(n) for n in plan.order if n.name == name)


def manifests(plan) -> dict[str, int]:
    """Stage -> when its manifest was written."""
    found = {n.name: plan.context.directory(n) / MANIFEST for n in plan.order}
    return {name: path.stat().st_mtime_ns for name, path in found.items() if path.exists()}


def checkpoint(path: Path, content: bytes = bytes(range(256)) * 64) -> Path:
    """A file as torch.save writes it: a zip archive of stored records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", content)
    return path
