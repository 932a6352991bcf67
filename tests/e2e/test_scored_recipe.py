"""A recipe whose stage 2b reads scores and whose stage 3 has a teacher's credit, by one command, with its ledger."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from tests.support.minimal_recipe import write_minimal_recipe
from verl_s2d.metrics.metric_logs import read_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(1800)
def test_labels_calls_and_scored_tokens_are_in_the_ledger_of_every_stage(tmp_path):
    recipe, run_dir = write_minimal_recipe(tmp_path, name="scored"), tmp_path / "run"
    settings = yaml.safe_load(recipe.read_text())
    settings["stages"]["opd"]["signal"] = {"type": "uni_opd", "balance": True}
    settings["stages"]["student_rl"]["credit"] = "trrd"
    settings["stages"]["student_rl"]["verl"]["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"] = 16
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run([*command, "--rows", "half-split"], check=True, stdout=sys.stderr, timeout=1700)

    stages = {}
    for path in run_dir.glob("stages/*/manifest.json"):
        manifest = json.loads(path.read_text())
        stages[manifest["name"]] = manifest["ledger"], read_metrics(path.parent)
    # Two steps of 8 problems with 2 rollouts each; a slice has 16 problems.
    for name in ("teacher-rl-1h", "opd-1h", "student-rl-2h"):
        ledger, metrics = stages[name]
        assert (len(ledger["labels_read"]), ledger["verifier_calls"]) == (16, 32), name
        assert len(metrics) == 2 and all(step["actor/grad_norm"] >= 0 for step in metrics.values())
    assert set(stages["opd-1h"][0]["labels_read"]) == set(stages["teacher-rl-1h"][0]["labels_read"])
    assert not set(stages["student-rl-2h"][0]["labels_read"]) & set(stages["opd-1h"][0]["labels_read"])
    assert stages["teacher-rl-1h"][0]["teacher_scored_tokens"] == 0
    for name in ("opd-1h", "student-rl-2h"):
        ledger, metrics = stages[name]
        assert ledger["teacher_scored_tokens"] == ledger["sampled_tokens"] > 0
        assert all("s2d/reverse_kl" in step for step in metrics.values())
    for name, (ledger, _) in stages.items():
        print(name, {key: value for key, value in ledger.items() if value and key != "labels_read"})
