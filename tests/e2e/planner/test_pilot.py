"""A pilot of the minimal recipe, for real: two rounds, the page, and again without building anything."""

from __future__ import annotations

import json
import math

import pytest

from tests.support.paths import ROOT
from verl_s2d.cli import main
from verl_s2d.workflow.store.manifest import read_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RECIPE = ROOT / "tests" / "e2e" / "minimal" / "recipe.yaml"
PLANNER = "planner={problems: 8, samples: 2, pilot: {smallest: 4, rounds: 2, updates: 2, evaluate_every: 1}}"


def test_a_pilot(tmp_path, capsys):
    command = ["pilot", str(RECIPE), PLANNER, "--run-dir", str(tmp_path / "run")]
    assert main(command) == 0
    page = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "pilot.json").read_text())
    assert f"Verdict: {result['verdict']}." in page
    assert [r["labels"] for r in result["rounds"]] == [8, 16]
    assert [entry["name"] for entry in result["candidates"]] == ["direct-grpo", "full-bridge", "half-split"]
    assert result["curves"]["student"]["labels"] == result["curves"]["teacher"]["labels"] == [8, 16]
    for made in result["transfers"]:
        start, *travelled = made["travel"]
        assert start == 0 and all(d > 0 and math.isfinite(d) for d in travelled)
        assert len(made["accuracy"]) == 3
    costs = [entry["cost"] for entry in result["candidates"]]
    assert all(cost["sampled_tokens"] > 0 and cost["verifier_calls"] > 0 for cost in costs)

    stages = [read_manifest(path) for path in (tmp_path / "run" / "stages").iterdir()]
    kinds = [stage["kind"] for stage in stages]
    assert kinds.count("transfer") == 2 and kinds.count("grpo") == 4
    # 2 models at the start, 2 after each round, and 2 models of each transfer.
    assert kinds.count("pass_rates") == 2 + 2 * 2 + 2 * 2
    ledgers = [stage["ledger"] for stage in stages]
    assert result["spent"]["verifier_calls"] == sum(ledger["verifier_calls"] for ledger in ledgers)
    trained = set().union(*(set(s["ledger"]["labels_read"]) for s in stages if s["kind"] == "grpo"))
    scored = set().union(*(set(s["ledger"]["labels_read"]) for s in stages if s["kind"] == "pass_rates"))
    assert len(trained) == 16 and len(scored) == 16 and not trained & scored

    began = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").glob("*/manifest.json")}
    assert main(command) == 0
    assert {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").glob("*/manifest.json")
    } == began
    assert json.loads((tmp_path / "run" / "pilot.json").read_text()) == result
