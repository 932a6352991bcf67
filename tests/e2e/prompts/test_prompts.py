"""Prompts without labels in real verl, vLLM and Ray: a pool of the recipe's, at minimum size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.minimal_recipe import write_minimal_recipe
from tests.support.tiny import write_problems

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def write_pool(path: Path, *, held: int, prompts: int) -> None:
    """Write the questions of sums that `data.py` does not use: it takes the first `held` of the same order."""
    sums = pq.read_table(write_problems(path.with_suffix(".parquet"), held + prompts)).slice(held)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in sums["prompt"].to_pylist()))
    path.with_suffix(".parquet").unlink()


@pytest.mark.timeout(3000)
def test_a_teacher_is_distilled_on_prompts_without_labels(tmp_path):
    write_pool(tmp_path / "more.jsonl", held=40, prompts=24)
    recipe, run_dir = write_minimal_recipe(tmp_path, name="pool"), tmp_path / "run"
    settings = yaml.safe_load(recipe.read_text())
    settings["data"]["prompts"] = "more.jsonl"
    settings["rows"] = ["bridge-unlabelled", "bridge-more-prompts"]
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "verl_s2d.cli"]
    subprocess.run([*command, "check", str(recipe)], check=True, stdout=sys.stderr, timeout=600)
    run = [*command, "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run(run, check=True, stdout=sys.stderr, timeout=2400)

    manifests = [json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")]
    read = {manifest["name"]: manifest["ledger"]["prompts_read"] for manifest in manifests}
    labels = {manifest["name"]: manifest["ledger"]["labels_read"] for manifest in manifests}
    # Two prompts' rollouts of each prompt; two batches of eight prompts.
    assert len(read["rollouts-prompts"]) == 24 and len(read["opd-prompts"]) == 16
    assert 0 < len(read["opd-all+prompts"]) < 16 and set(read["opd-all+prompts"]) < set(read["rollouts-all+prompts"])
    assert not read["teacher-rl-all"] and labels["teacher-rl-all"]
    assert not any(labels[name] for name in read if name.partition("-")[0] in ("opd", "warmup", "rollouts"))
    report = json.loads((run_dir / "report.json").read_text())
    ledger = {row["name"]: row["ledger"] for row in report["rows"]}
    assert [ledger[row]["prompts_read"] for row in settings["rows"]] == [24, 24]
    assert ledger["bridge-unlabelled"]["labels_read"] == len(labels["teacher-rl-all"])
    assert "| prompts |" in (run_dir / "report.md").read_text()
    for manifest in manifests:
        counted = {k: len(v) if isinstance(v, list) else v for k, v in manifest["ledger"].items() if v}
        print(manifest["name"], counted)
