"""A probe in real vLLM and transformers: page and numbers against the samples, and a second one that builds nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.support.minimal_recipe import write_minimal_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROBLEMS, SAMPLES = 24, 4
ROLES = ("student", "teacher", "teacher_small")


def verl_s2d(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "verl_s2d.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1000)


@pytest.mark.timeout(1500)
def test_a_probe_of_two_candidates(tmp_path):
    small = {"teacher_small": {"script": "model.py", "args": {"layers": 1, "seed": 3}}}
    recipe = write_minimal_recipe(tmp_path, models=small, planner={"problems": PROBLEMS, "samples": SAMPLES})
    run_dir = tmp_path / "run"
    first = verl_s2d("probe", recipe, "--run-dir", run_dir)
    assert first.returncode == 0, first.stderr
    found = json.loads((run_dir / "probe.json").read_text())
    lines = first.stdout.splitlines()
    assert lines[0] == f"minimal: {PROBLEMS} labelled problems, {SAMPLES} samples each, seed 0"
    assert all(any(line.startswith(role) for line in lines) for role in ROLES)

    samples, rates = {}, {}
    for role in ROLES:
        directory = run_dir / "stages" / found["stages"][f"samples-{role}"]
        samples[role] = rows = pq.read_table(directory / "generations.parquet").to_pylist()
        rates[role] = {}
        for row in rows:
            rates[role].setdefault(row["id"], []).append(row["correct"])
        told = found["models"][role]
        assert told["pass_at_1"]["mean"] == pytest.approx(sum(row["correct"] for row in rows) / len(rows))
        mixed = sum(0 < sum(verdicts) < SAMPLES for verdicts in rates[role].values())
        assert told["mixed"]["mean"] == pytest.approx(mixed / PROBLEMS)
        assert told["truncated"] == pytest.approx(sum(row["finish_reason"] == "length" for row in rows) / len(rows))
    assert rates["student"].keys() == rates["teacher"].keys() == rates["teacher_small"].keys()

    tokens = {role: sum(len(row["response_ids"]) for row in rows) for role, rows in samples.items()}
    ledger = found["ledger"]
    assert set(ledger["labels_read"]) == rates["student"].keys() and ledger["labels"] == PROBLEMS
    assert ledger["verifier_calls"] == len(ROLES) * PROBLEMS * SAMPLES
    assert ledger["sampled_tokens"] == sum(tokens.values())
    assert ledger["teacher_scored_tokens"] == 2 * tokens["student"] + tokens["teacher"] + tokens["teacher_small"]
    for role, pair in found["pairs"].items():
        assert pair["student_rollouts"]["tokens"] == tokens["student"]
        assert pair["teacher_rollouts"]["tokens"] == tokens[role]
        assert pair["student_rollouts"]["reverse_kl"]["mean"] > 0 and pair["teacher_rollouts"]["travel"] > 0
        gaps = [sum(rates[role][i]) / SAMPLES - sum(of) / SAMPLES for i, of in rates["student"].items()]
        assert pair["gap"]["mean"] == pytest.approx(sum(gaps) / PROBLEMS)

    again = verl_s2d("probe", recipe, "planner.thresholds.mass=0.1", "--run-dir", run_dir, "--json")
    assert again.returncode == 0, again.stderr
    assert "[1/" not in again.stderr, "nothing is built again"
    second = json.loads(again.stdout)
    assert second["stages"] == found["stages"] and second["pairs"].keys() == found["pairs"].keys()
    refused = [{v["key"] for v in result["verdicts"] if not v["ok"]} for result in (found, second)]
    assert refused[0] - refused[1] == {"mass"}
