"""Every row by one command, at minimum size in real verl, vLLM and Ray: stages that rows share are built once.

More than forty stages; tests/RESULTS.md has the figures. That the planned graph shares the
same stages is in tests/unit/recipe/test_rows.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.support.minimal_recipe import write_minimal_recipe
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.rows import ROWS
from verl_s2d.stages.planning import make_plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MATCHED = {
    "direct-grpo-same-calls": {"row": "direct-grpo", "to": "half-split", "by": "verifier_calls"},
    "direct-grpo-same-tokens": {"row": "direct-grpo", "to": "half-split", "by": "sampled_tokens"},
    "opd-only-same-tokens": {"row": "opd-only", "to": "half-split", "by": "sampled_tokens"},
}


@pytest.mark.timeout(7200)
def test_all_rows_by_one_command(tmp_path):
    sft_teacher = {"script": "model.py", "args": {"layers": 3, "seed": 3}}
    recipe = write_minimal_recipe(tmp_path, name="rows", matched=MATCHED, sft_teacher=sft_teacher)
    run_dir = tmp_path / "run"
    rows = [*ROWS, *MATCHED]
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    command += ["--rows", ",".join(rows)]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=7000)
    seconds = time.monotonic() - began

    plan = make_plan(load_recipe(recipe), run_dir=run_dir, rows=rows)
    manifests = [json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")]
    assert sorted(m["digest"] for m in manifests) == sorted(n.digest for n in plan.order)
    assert {m["attempts"] for m in manifests} == {1}

    # The teacher: once a slice for all rows, and once more where the second half follows the first.
    trained = Counter(m["name"] for m in manifests if m["kind"] == "grpo")
    assert trained["teacher-rl-1h"] == trained["teacher-rl-all"] == trained["teacher-rl-2h"] == 1
    distinct = {
        json.dumps([m["settings"], m["inputs"], m["externals"]], sort_keys=True)
        for m in manifests
        if m["kind"] == "grpo"
    }
    assert len(distinct) == sum(trained.values())
    shared = next(n for n in plan.order if n.name == "teacher-rl-1h")
    assert {"bridge-only-1h", "half-split", "replay-control", "held-out-upstream"} <= set(plan.rows_of(shared))

    report = json.loads((run_dir / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == rows
    for row in report["rows"]:
        assert 0 <= row["sets"]["eval"]["avg"] <= 1
        match = row["per_seed"][0]["matched"]
        assert (match is not None) == (row["name"] in MATCHED)
        if match is not None:
            assert match["wanted"] <= match["reached"]
            print(row["name"], match)
    same_calls = next(row for row in report["rows"] if row["name"] == "direct-grpo-same-calls")
    half_split = next(row for row in report["rows"] if row["name"] == "half-split")
    assert same_calls["ledger"]["verifier_calls"] == half_split["ledger"]["verifier_calls"]

    finished = {p: p.stat().st_mtime_ns for p in run_dir.glob("stages/*/manifest.json")}
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=600)
    assert {p: p.stat().st_mtime_ns for p in finished} == finished, "nothing is left to build"
    unshared = sum(len(make_plan(plan.recipe, run_dir=run_dir, rows=[row]).order) for row in rows)
    kinds = dict(Counter(m["kind"] for m in manifests))
    print(f"{len(rows)} rows, {len(manifests)} stages {kinds} instead of {unshared}, {seconds:.0f} s")
