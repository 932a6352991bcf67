"""Every row of other methods and every control by one command, at minimum size in real verl, vLLM and Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from tests.support.minimal_recipe import write_minimal_recipe
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.method_rows import METHOD_ROWS, SIGNALS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(5400)
def test_all_method_rows_by_one_command(tmp_path):
    recipe, run_dir = write_minimal_recipe(tmp_path, name="methods"), tmp_path / "run"
    settings = yaml.safe_load(recipe.read_text())
    # The teacher of a credit stands where verl's reference policy does.
    settings["stages"]["student_rl"]["verl"]["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"] = 16
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    rows = ["full-bridge", *METHOD_ROWS]
    began = time.monotonic()
    subprocess.run([*command, "--rows", ",".join(rows)], check=True, stdout=sys.stderr, timeout=5000)
    seconds = time.monotonic() - began

    manifests = {path.parent: json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")}
    report = json.loads((run_dir / "report.json").read_text())
    assert {row["name"] for row in report["rows"]} == set(rows)
    kinds = Counter(manifest["kind"] for manifest in manifests.values())
    stages = {manifest["name"]: directory for directory, manifest in manifests.items()}
    # One teacher, one cache and one warmup for all rows that differ in the signal of 2b.
    bridged = [*SIGNALS, "self-teacher"]
    read = {
        json.loads((stages[f"opd-all-{row}"] / "manifest.json").read_text())["inputs"]["model"]["digest"]
        for row in bridged
    }
    assert len(read) == 1

    logged = {row: read_metrics(stages[f"opd-all-{row}"]) for row in bridged}
    for row, steps in logged.items():
        assert len(steps) == 2
        assert all(step["actor/grad_norm"] > 0 for step in steps.values()) or row == "self-teacher", row
    ledger = {row["name"]: row["ledger"] for row in report["rows"]}
    assert ledger["no-teacher"]["teacher_scored_tokens"] < ledger["shuffled-teacher"]["teacher_scored_tokens"]
    # Before the first update the student is its teacher; its engine and the reference's round alike.
    assert abs(logged["self-teacher"][1]["s2d/reverse_kl"]) < 1e-5
    assert "s2d/reverse_kl" not in logged["no-teacher"][1]
    for row in ledger:
        print(row, {key: value for key, value in ledger[row].items() if value})
    print(f"{len(rows)} rows, {len(manifests)} stages {dict(kinds)}, {seconds:.0f} s")
