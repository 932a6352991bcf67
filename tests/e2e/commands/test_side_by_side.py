"""Independent stages at the same time in real verl, vLLM and Ray, each on a Ray head of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from tempfile import TemporaryDirectory

import pytest

from tests.support.minimal_recipe import write_minimal_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(3600)
def test_two_rows_are_built_side_by_side(tmp_path):
    run_dir = tmp_path / "run"
    recipe = write_minimal_recipe(tmp_path, rows=["direct-grpo", "half-split"])
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    with TemporaryDirectory(prefix="t", dir="/tmp") as temporary:  # short: it holds sockets
        environment = os.environ | {"TMPDIR": temporary}
        command_beside = [*command, "cluster.side_by_side=2"]
        subprocess.run(command_beside, env=environment, check=True, stdout=sys.stderr, timeout=3000)
        left = [name for name in os.listdir(temporary) if not name.startswith("torchinductor_")]
        assert not left, "only what torch compiled outlives a run"

    manifests = {path.parent: json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")}
    assert {manifest["attempts"] for manifest in manifests.values()} == {1}
    times = {}
    for directory, manifest in manifests.items():
        if manifest["kind"] == "grpo":
            attempt = json.loads((directory / "attempts" / "attempt-1.json").read_text())
            times[manifest["name"]] = (attempt["started"], attempt["ended"])
    first = (times["student-rl-all"], times["teacher-rl-1h"])
    assert any(max(a[0], b[0]) < min(a[1], b[1]) for a, b in combinations(first, 2)), "neither waited for the other"
    assert {path.name for path in run_dir.glob("ray*.log")} == {"ray.log", "ray-1.log"}
    report = json.loads((run_dir / "report.json").read_text())
    assert {row["name"] for row in report["rows"]} == {"direct-grpo", "half-split"}

    finished = {path: path.stat().st_mtime_ns for path in run_dir.glob("stages/*/manifest.json")}
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=600)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "one at a time, nothing is built again"
