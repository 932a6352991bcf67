"""Problem weights in stages 2a and 2b, and a prefix in 2b: one recipe, and one verl command, in real verl and vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from tests.support.batch_dump import BATCH, dumping
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.load import load_recipe
from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.store.manifest import read_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MINIMAL = Path(__file__).parent / "minimal"
ROW, PROBLEMS, SAMPLES = "raw-teacher", 32, 4


def write_recipe(directory: Path) -> Path:
    """The minimal recipe's bridge from the raw teacher, with an exact signal in 2b."""
    recipe = yaml.safe_load((MINIMAL / "recipe.yaml").read_text())
    for source in (recipe["student"], recipe["teacher"], recipe["data"]["source"]):
        source["script"] = str(MINIMAL / source["script"])
    recipe |= {"name": "paced", "rows": [ROW], "verifier": f"{MINIMAL}/{recipe['verifier']}"}
    stages, weights = recipe["stages"], {"problem_weights": {}}
    stages["pass_rates"] = {"samples": SAMPLES}
    stages["warmup"] |= {"steps": 4, **weights}
    stages["opd"] |= {"steps": 3, "signal": "reverse_kl", "prefix": {"start": 2, "grow": 2}, **weights}
    recipe["cluster"]["stall_minutes"] = 5
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.timeout(1500)
def test_a_recipe_measures_rates_twice_books_them_and_samples_prefixes(tmp_path):
    recipe, run_dir = write_recipe(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=1400)

    plan = make_plan(load_recipe(recipe), run_dir=run_dir)
    nodes = {node.name: plan.context.directory(node) for node in plan.order}
    labels = {
        str(row["index"])
        for row in pq.read_table(next(run_dir.glob("stages/slices-*/all.parquet")))["extra_info"].to_pylist()
    }
    for name in ("pass-rates-all-warmup-raw", "pass-rates-all-opd-raw"):
        rates = json.loads((nodes[name] / "pass_rates.json").read_text())
        assert rates.keys() == labels and all(0 <= rate <= 1 for rate in rates.values())
        ledger, samples = read_manifest(nodes[name])["ledger"], pq.read_table(nodes[name] / "generations.parquet")
        assert set(ledger["labels_read"]) == labels and ledger["verifier_calls"] == SAMPLES * PROBLEMS
        assert ledger["sampled_tokens"] == sum(map(len, samples["response_ids"].to_pylist()))
    for name in ("warmup-all-raw", "opd-all-raw"):
        ledger = read_manifest(nodes[name])["ledger"]
        assert ledger["labels_read"] == [] and ledger["verifier_calls"] == 0
    report = json.loads((run_dir / "report.json").read_text())
    (row,) = report["rows"]
    assert row["ledger"]["labels_read"] == PROBLEMS and row["ledger"]["verifier_calls"] == 2 * SAMPLES * PROBLEMS

    metrics = read_metrics(nodes["opd-all-raw"])
    assert [metrics[step]["s2d/prefix_tokens"] for step in (1, 2, 3)] == [2, 4, 6]
    assert [metrics[step]["response_length/max"] for step in (1, 2, 3)] == [2, 4, 6]
    assert all(data["actor/grad_norm"] > 0 for data in metrics.values())


def test_an_advantage_is_multiplied_by_its_problems_weight_and_a_resumed_prefix_goes_on(
    verl, teacher, student, prompts, tmp_path
):
    problems = pq.read_table(prompts).to_pylist()
    rates = {row["extra_info"]["index"]: (i % 5) / 4 for i, row in enumerate(problems)}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    overrides = BATCH | {
        "+s2d.teacher.path": str(teacher),
        "+s2d.problem_weights.path": str(tmp_path / "rates.json"),
        "+s2d.problem_weights.b": 2.0,
        "+s2d.prefix.start": 3,
        "+s2d.prefix.grow": 2,
        "trainer.save_freq": 1,
        "trainer.resume_mode": "auto",
    }
    # Two runs: the second resumes from the first one's checkpoint.
    metrics = {}
    for step in (1, 2):
        more = dumping(tmp_path / "batch.pt") if step == 1 else {}
        metrics |= verl.run("opd", student=student, data=prompts, out=tmp_path, steps=step, overrides=overrides | more)
    raw = {i: p * (1 - p) ** 2 for i, p in rates.items()}
    mean = sum(raw.values()) / len(raw)
    tokenizer = AutoTokenizer.from_pretrained(student)
    of_prompt = {
        tuple(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]): row
        for row in problems
    }
    rows, seen = torch.load(tmp_path / "batch.pt"), set()
    for prompt, advantage, reference, old, found in zip(
        *(rows[n] for n in ("prompts", "advantages", "ref_log_prob", "old_log_probs", PROBLEM_WEIGHT)), strict=True
    ):
        weight = raw[of_prompt[tuple(prompt.tolist())]["extra_info"]["index"]] / mean
        assert found.item() == pytest.approx(weight)
        torch.testing.assert_close(advantage, weight * (reference - old))
        seen.add(round(weight, 3))
    assert len(seen) == 4, "0 for the rates 0 and 1, and three weights more"
    assert [metrics[step]["response_length/max"] for step in (1, 2)] == [3, 5], "the second step is of a resumed run"
