"""Bits that flip and files that are cut short in a finished run: named, and built again where something reads them."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys

import pytest

from tests.support.workflow.damage import flip, truncate
from tests.support.workflow.faults import (
    determined,
    finish,
    manifests,
    nothing_half_written,
    outputs,
    write_recipe,
    written,
)
from verl_s2d.workflow.store.manifest import MANIFEST
from verl_s2d.workflow.store.verify import verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def content(manifest: dict) -> dict[str, str]:
    """Digests of weights and data; files that say where they came from differ between run directories."""
    return {name: digest for name, digest in outputs(manifest).items() if name.endswith((".safetensors", ".parquet"))}


@pytest.mark.timeout(1800)
def test_what_is_damaged_is_named_and_built_again(seed, undisturbed, tmp_path, fault):
    rng, run_dir = random.Random(seed), tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    stage = {p.parent.name.rpartition("-")[0]: p.parent for p in run_dir.glob(f"stages/*/{MANIFEST}")}
    shutil.rmtree(stage["warmup"])
    harmed = {
        "manifest": next(run_dir.glob(f"stages/slices-*/{MANIFEST}")),
        "rollout cache": stage["rollouts"] / "rollouts.parquet",
        "model": stage["opd"] / "model" / "model.safetensors",
    }
    for what, path in harmed.items():
        harm = truncate if what == "manifest" else rng.choice((flip, truncate))
        harm(path)
        fault(f"{what} {'with a flipped bit' if harm is flip else 'cut short'}", "finished stage")
    found = {finding.path for finding in verify_run(run_dir).findings if finding.bad}
    assert found == {str(path.relative_to(run_dir)) for path in harmed.values()}
    told = subprocess.run(
        [sys.executable, "-m", "verl_s2d.cli", "verify", str(run_dir)], capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 1 and told.stdout.count("DAMAGED") == 3

    before = written(run_dir)
    printed = finish(write_recipe(tmp_path), run_dir)
    rebuilt = {name.rpartition("-")[0] for name, at in written(run_dir).items() if before.get(name) != at}
    # The model of stage 2b is not read: what was made of it is there, and whole.
    assert rebuilt == {"slices", "rollouts", "warmup"} and "rollouts.parquet" in printed, printed
    now, then = manifests(run_dir), manifests(undisturbed)
    assert {name: content(now[name]) for name in now} == {name: content(then[name]) for name in then}

    # What reads that model finds it.
    shutil.rmtree(stage["evaluate"])
    shutil.rmtree(run_dir / "stages" / f"grpo-{now['student-rl-2h']['digest'][:12]}")
    finish(write_recipe(tmp_path), run_dir)
    nothing_half_written(run_dir)
    assert determined(run_dir) == determined(undisturbed)
